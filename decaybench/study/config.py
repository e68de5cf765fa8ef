"""A run as one frozen value: everything that decides its numbers, and nothing else."""

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
from decaybench.registry.spec import Spec

Augmentation = Literal["none", "flip", "crop", "crop-flip"]
Precision = Literal["float32", "tf32", "bfloat16"]
Split = Literal["fixed", "seed"]
# Raised whenever training itself changes its numbers, so that old records are never mixed with new ones.
TRAINING_VERSION = 4


DataKey = tuple[str, float, int | None, int | None]
# Fields that records did not always have, with the value that all had before.
ADDED_FIELDS = {"precision": "float32", "split": "fixed"}


class RunConfig(BaseModel):
    """One configuration with its seed. The device, the place and the time are provenance, not part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: Spec
    network: Spec
    activation: Spec
    strategy: Spec
    optimizer: Spec
    schedule: Spec
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    epochs: PositiveInt
    batch_size: PositiveInt
    clip_norm: PositiveFloat | None = None
    augment: Augmentation = "none"
    validation: Annotated[float, Field(gt=0, lt=1)]
    train_limit: PositiveInt | None = None
    split: Split = "fixed"
    precision: Precision = "float32"
    seed: Annotated[int, Field(ge=0)]
    training_version: int = TRAINING_VERSION

    @field_validator("weight_decay")
    @classmethod
    def _no_negative_zero(cls, value: float) -> float:
        return value + 0.0

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out fields at their default that records did not always have, so that their run ids stay."""
        fields: dict[str, Any] = write(self)
        for key, default in ADDED_FIELDS.items():
            if fields.get(key) == default:
                del fields[key]
        return fields

    @cached_property
    def run_id(self) -> str:
        """16 hexadecimal digits that stand for this configuration with its seed."""
        return config_digest(self.model_dump())

    @cached_property
    def cell_id(self) -> str:
        """16 hexadecimal digits that stand for this configuration without its seed: the runs of one cell share them."""
        return config_digest(self.model_dump(exclude={"seed"}))

    def specs(self) -> tuple[Spec, ...]:
        """Returns everything in it that has a name."""
        return self.dataset, self.network, self.activation, self.strategy, self.optimizer, self.schedule

    def data_key(self) -> DataKey:
        """Returns what decides the tensors of the data set."""
        seed = self.seed if self.split == "seed" else None
        return self.dataset.model_dump_json(), self.validation, self.train_limit, seed
