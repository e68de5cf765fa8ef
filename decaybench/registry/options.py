"""The options of everything in the catalog: names, types, ranges, defaults."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, lt=1)]
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
Shape = Literal["elu", "gelu", "identity", "leaky-relu", "relu", "sigmoid", "silu", "tanh"]
Group = Literal["all", "weights", "activation"]


class Options(BaseModel):
    """The options of one entry: their names, types, ranges and defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LossPenaltyOptions(Options):
    """`l1_ratio` is the share of L1 in elastic-net; `on` which parameters are penalized."""

    penalty: Literal["l1", "l2", "elastic-net"] = "l2"
    l1_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    on: Group = "weights"


class TwoOptimizersOptions(Options):
    """Of the second optimizer; None means as the first."""

    alpha_optimizer: OptimizerName | None = None
    alpha_lr: PositiveFloat | None = None


class ProximalOptions(Options):
    """Which parameters are thresholded."""

    on: Group = "all"


class LeakyReLUOptions(Options):
    """The fixed slope for negative inputs."""

    slope: float = 0.01


class PReLUOptions(Options):
    """One slope for all channels or one each, and where it starts."""

    shared: bool = False
    init: float = 0.25


class KAFOptions(Options):
    """`gamma` is in units of 1/Δ², Δ the distance of two atoms; `epsilon` is that of the ridge fit."""

    D: Annotated[int, Field(ge=2, le=256)] = 20
    boundary: PositiveFloat = 4.0
    kernel: Literal["gaussian", "relu", "softplus"] = "gaussian"
    gamma: PositiveFloat = 0.125
    init: Shape | Literal["random"] = "elu"
    std: PositiveFloat = 0.8
    epsilon: NonNegativeFloat = 1e-4

    @model_validator(mode="before")
    @classmethod
    def _default_init(cls, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("kernel") == "relu":
            given = {"init": "random", **given}
        return given

    @model_validator(mode="after")
    def _no_singular_fit(self) -> Self:
        if self.kernel == "relu" and self.init != "random":
            raise ValueError("the relu kernel's matrix is singular, so it cannot be fitted; use init=random")
        return self


class SwishOptions(Options):
    """Where β starts."""

    beta: float = 1.0


class XIELUOptions(Options):
    """Where both curvatures start, `p` right and `n` left of 0, and the fixed slope there."""

    p: PositiveFloat = 0.8
    n: PositiveFloat = 0.8
    beta: NonNegativeFloat = 0.5

    @model_validator(mode="after")
    def _softplus_reaches_it(self) -> Self:
        if self.n <= self.beta:
            raise ValueError("n must be above beta, since n = beta + softplus(alpha_n)")
        return self


class ForumOptions(Options):
    """Channels of the first layer; the second has twice as many."""

    width: PositiveInt = 16


class MLPOptions(Options):
    """`dropout` follows each activation."""

    width: PositiveInt = 128
    depth: PositiveInt = 2
    dropout: Fraction = 0.0


class VGGOptions(Options):
    """`depth` convolutions from `width` channels on, `norm` for batch normalization."""

    depth: Annotated[int, Field(ge=2, le=32)] = 8
    width: PositiveInt = 32
    norm: bool = False


class SyntheticOptions(Options):
    """`noise` is the standard deviation around prototypes of variance 1."""

    samples: Annotated[int, Field(ge=40)] = 640
    classes: Annotated[int, Field(ge=2, le=20)] = 4
    size: Annotated[int, Field(ge=1, le=64)] = 8
    noise: NonNegativeFloat = 3.0


class OptimizerOptions(Options):
    """Options of an optimizer, and the learning rate it gets when none is asked for."""

    default_lr: ClassVar[float] = 1e-3


class SGDOptions(OptimizerOptions):
    """As in `torch.optim.SGD`."""

    default_lr: ClassVar[float] = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamOptions(OptimizerOptions):
    """As in `torch.optim.Adam` and ``AdamW``."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8


class RMSpropOptions(OptimizerOptions):
    """As in `torch.optim.RMSprop`, whose alpha is called `smoothing` here."""

    smoothing: Fraction = 0.99
    momentum: Fraction = 0.0
    eps: PositiveFloat = 1e-8


class ScheduleOptions(Options):
    """`warmup` is in epochs."""

    warmup: NonNegativeFloat = 0.0  # epochs of linear warm-up


class StepOptions(ScheduleOptions):
    """`step_size` is in epochs."""

    step_size: PositiveFloat = 10.0  # epochs
    gamma: PositiveFloat = 0.1
