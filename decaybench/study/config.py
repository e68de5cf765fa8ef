"""A run as one frozen value: everything that decides its numbers, and nothing else.

`RunConfig` is a run that is trained here, `ScriptConfig` one of a training script of the user's.
"""

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from decaybench.registry.hashing import config_digest
from decaybench.registry.spec import Scalar, Spec

Augmentation = Literal["none", "flip", "crop", "crop-flip"]
Precision = Literal["float32", "tf32", "bfloat16"]
Split = Literal["fixed", "seed"]
# Raised whenever training itself changes its numbers, so that old records are never mixed with new ones.
TRAINING_VERSION = 4


DataKey = tuple[str, float, int | None, int | None]
# Fields that records did not always have, with the value that all had before.
ADDED_FIELDS: dict[str, Any] = {"precision": "float32", "split": "fixed", "loss": None}


class _Identified(BaseModel):
    """A configuration with a seed, known by the hash of all its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    strategy: Spec
    weight_decay: NonNegativeFloat
    seed: Annotated[int, Field(ge=0)]

    @field_validator("weight_decay")
    @classmethod
    def _no_negative_zero(cls, value: float) -> float:
        return value + 0.0

    @cached_property
    def run_id(self) -> str:
        """16 hexadecimal digits that stand for this configuration with its seed."""
        return config_digest(self.model_dump())

    @cached_property
    def cell_id(self) -> str:
        """16 hexadecimal digits that stand for this configuration without its seed: the runs of one cell share them."""
        return config_digest(self.model_dump(exclude={"seed"}))


class RunConfig(_Identified):
    """One configuration with its seed. The device, the place and the time are provenance, not part of it."""

    dataset: Spec
    network: Spec
    activation: Spec
    optimizer: Spec
    schedule: Spec
    lr: PositiveFloat
    epochs: PositiveInt
    batch_size: PositiveInt
    clip_norm: PositiveFloat | None = None
    augment: Augmentation = "none"
    validation: Annotated[float, Field(gt=0, lt=1)]
    train_limit: PositiveInt | None = None
    split: Split = "fixed"
    precision: Precision = "float32"
    loss: Spec | None = None
    training_version: int = TRAINING_VERSION

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out fields at their default that records did not always have, so that their run ids stay."""
        fields: dict[str, Any] = write(self)
        for key, default in ADDED_FIELDS.items():
            if fields.get(key) == default:
                del fields[key]
        return fields

    def specs(self) -> tuple[Spec, ...]:
        """Returns everything in it that has a name."""
        every = (self.dataset, self.network, self.activation, self.strategy, self.optimizer, self.schedule, self.loss)
        return tuple(spec for spec in every if spec is not None)

    @property
    def name(self) -> str:
        """What is trained, in a few words."""
        return " ".join(s.label for s in (self.dataset, self.network, self.activation, self.strategy))

    @property
    def details(self) -> str:
        """What else tells this cell from others."""
        precision = "" if self.precision == "float32" else f" precision={self.precision}"
        return (
            f"{self.optimizer.label} lr={self.lr:g} weight_decay={self.weight_decay:g} epochs={self.epochs}{precision}"
        )

    def data_key(self) -> DataKey:
        """Returns what decides the tensors of the data set."""
        seed = self.seed if self.split == "seed" else None
        return self.dataset.model_dump_json(), self.validation, self.train_limit, seed


class ScriptConfig(_Identified):
    """One run of a training script: its command line, its options, the strategy and the seed that its trial gets.

    Attributes:
        script: The command line, without what differs between runs.
        source: A hash of the script's own files, all that it imports included.
        args: Options of the script that are axes of the study.
    """

    script: str
    source: str
    args: dict[str, Scalar] = {}

    @property
    def name(self) -> str:
        """What is trained, in a few words."""
        return f"{self.script} {self.strategy.label}"

    @property
    def details(self) -> str:
        """What else tells this cell from others."""
        return " ".join([f"weight_decay={self.weight_decay:g}", *(f"{k}={v}" for k, v in self.args.items())])

    def specs(self) -> tuple[Spec, ...]:
        """Returns everything in it that has a name."""
        return (self.strategy,)


AnyConfig = RunConfig | ScriptConfig


def read_config(fields: dict[str, Any]) -> AnyConfig:
    """Reads the configuration of a record."""
    return ScriptConfig.model_validate(fields) if "script" in fields else RunConfig.model_validate(fields)
