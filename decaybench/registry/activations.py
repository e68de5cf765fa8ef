"""The activation functions and their options."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from decaybench.registry.entry import Entry, Options

# Functions that a KAF can be fitted to before training.
InitialFunction = Literal["elu", "gelu", "identity", "leaky-relu", "relu", "sigmoid", "silu", "tanh"]


class ReLUOptions(Options):
    """Options of the ReLU: `gain` for a learned factor of each channel."""

    added = frozenset({"gain"})
    gain: bool = False


class LeakyReLUOptions(Options):
    """Options of the leaky ReLU: its fixed slope for negative inputs."""

    slope: float = 0.01


class PReLUOptions(Options):
    """Options of PReLU: one slope for all channels or one each, and its initial value."""

    shared: bool = False
    init: float = 0.25


class KAFOptions(Options):
    """Options of KAF: `gamma` in units of 1/Δ², Δ the distance of two atoms; `epsilon` of the ridge fit."""

    D: Annotated[int, Field(ge=2, le=256)] = 20
    boundary: PositiveFloat = 4.0
    kernel: Literal["gaussian", "relu", "softplus"] = "gaussian"
    gamma: PositiveFloat = 0.125
    init: InitialFunction | Literal["random"] = "elu"
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
    """Options of Swish: the initial β."""

    beta: float = 1.0


class XIELUOptions(Options):
    """Options of xIELU: the initial curvatures, `p` right and `n` left of 0, and the fixed slope at 0."""

    p: PositiveFloat = 0.8
    n: PositiveFloat = 0.8
    beta: NonNegativeFloat = 0.5

    @model_validator(mode="after")
    def _softplus_reaches_it(self) -> Self:
        if self.n <= self.beta:
            raise ValueError("n must be above beta, since n = beta + softplus(alpha_n)")
        return self


class RationalOptions(Options):
    """Options of the rational activation: the function that it approximates at the start."""

    init: Literal["leaky-relu", "silu"] = "leaky-relu"


ACTIVATIONS: Mapping[str, Entry] = {
    "relu": Entry(
        "max(0, s); nothing learned, or with gain=true a factor per channel",
        "decaybench.activations.relu:relu",
        ReLUOptions,
    ),
    "leaky-relu": Entry("s or slope·s; nothing learned", "decaybench.activations.relu:leaky_relu", LeakyReLUOptions),
    "prelu": Entry(
        "learned negative slope, per channel or shared (He et al. 2015)",
        "decaybench.activations.prelu:prelu",
        PReLUOptions,
    ),
    "kaf": Entry(
        "kernel activation function, Σ α·κ(s, d) (Scardapane et al. 2017)",
        "decaybench.activations.kaf.module:KAF",
        KAFOptions,
    ),
    "swish": Entry(
        "s·σ(βs), learned β per channel (Ramachandran et al. 2017)",
        "decaybench.activations.swish:Swish",
        SwishOptions,
    ),
    "xielu": Entry(
        "two learned curvatures; decays to ln 2, not to 0 (Huang et al. 2024)",
        "decaybench.activations.xielu:XIELU",
        XIELUOptions,
    ),
    "rational": Entry(
        "learned quotient of polynomials of degree 5 and 4 (Molina et al. 2020)",
        "decaybench.activations.rational:Rational",
        RationalOptions,
    ),
}
