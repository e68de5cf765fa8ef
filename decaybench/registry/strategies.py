"""The strategies and their options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat

from decaybench.registry.entry import Entry, Options
from decaybench.registry.optimizers import OptimizerName

Subset = Literal["all", "weights", "activation"]
_MODULE = "decaybench.strategies.strategies:"


class LossPenaltyOptions(Options):
    """Options of loss-penalty: `l1_ratio` is the share of L1 in elastic-net, `on` the parameters that are penalized."""

    penalty: Literal["l1", "l2", "elastic-net"] = "l2"
    l1_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    on: Subset = "weights"


class LayerOptions(Options):
    """Options of exclude-alpha and alpha-only: the one `layer` that they are about, counted from 0; None means all."""

    added = frozenset({"layer"})
    layer: NonNegativeInt | None = None


class TwoOptimizersOptions(Options):
    """Options of two-optimizers: kind and learning rate of the second one; None means as the first."""

    alpha_optimizer: OptimizerName | None = None
    alpha_lr: PositiveFloat | None = None


class ProximalOptions(Options):
    """Options of proximal-l1: the parameters that are thresholded."""

    on: Subset = "all"


@dataclass(frozen=True)
class StrategyEntry(Entry):
    """An entry of a strategy, with the parameters it decays.

    Attributes:
        decays: Which parameters are pulled: ``all``, ``none``, ``weights`` (all but the activation
            parameters), ``activation``, ``matrices`` (two dimensions or more, and no bias), ``no biases`` (all but
            biases), or ``no norms or biases``.
    """

    decays: Literal["all", "none", "weights", "activation", "matrices", "no biases", "no norms or biases"] = "all"


STRATEGIES: Mapping[str, StrategyEntry] = {
    "no-decay": StrategyEntry("control: nothing is regularized", _MODULE + "no_decay", decays="none"),
    "decay-all": StrategyEntry("the optimizer's weight_decay on every parameter", _MODULE + "decay_all"),
    "exclude-alpha": StrategyEntry(
        "param groups: activation parameters get weight_decay=0", _MODULE + "exclude_alpha", LayerOptions, "weights"
    ),
    "loss-penalty": StrategyEntry(
        "no optimizer decay; a penalty on the other parameters is added to the loss",
        _MODULE + "loss_penalty",
        LossPenaltyOptions,
        "weights",
    ),
    "two-optimizers": StrategyEntry(
        "weights in one optimizer with decay, activation parameters in a second without",
        _MODULE + "two_optimizers",
        TwoOptimizersOptions,
        "weights",
    ),
    "exclude-1d": StrategyEntry(
        "the widespread rule: skip biases and 1-D parameters (spares PReLU, decays KAF)",
        _MODULE + "exclude_1d",
        decays="matrices",
    ),
    "exclude-bias": StrategyEntry(
        "no decay for biases, what exclude-1d also does", _MODULE + "exclude_bias", decays="no biases"
    ),
    "exclude-norm-bias": StrategyEntry(
        "no decay for biases and normalization, but for slopes",
        _MODULE + "exclude_norm_bias",
        decays="no norms or biases",
    ),
    "alpha-only": StrategyEntry(
        "diagnostic: only the activation parameters are decayed", _MODULE + "alpha_only", LayerOptions, "activation"
    ),
    "decay-to-init": StrategyEntry(
        "activation parameters are pulled to their initial value instead of to zero", _MODULE + "decay_to_init"
    ),
    "proximal-l1": StrategyEntry(
        "soft-thresholding after the step: exact zeros", _MODULE + "proximal_l1", ProximalOptions
    ),
}
