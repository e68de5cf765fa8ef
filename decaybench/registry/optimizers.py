"""The optimizers and learning-rate schedules and their options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from decaybench.registry.entry import Entry, Fraction, Options

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
_MODULE = "decaybench.optimizers:"


class OptimizerOptions(Options):
    """Options of an optimizer, and the learning rate it gets when none is asked for."""

    default_lr: ClassVar[float] = 1e-3


class SGDOptions(OptimizerOptions):
    """Options of `torch.optim.SGD`."""

    default_lr: ClassVar[float] = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamOptions(OptimizerOptions):
    """Options of `torch.optim.Adam` and ``AdamW``."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8


class RMSpropOptions(OptimizerOptions):
    """Options of `torch.optim.RMSprop`, whose alpha is called `smoothing` here."""

    smoothing: Fraction = 0.99
    momentum: Fraction = 0.0
    eps: PositiveFloat = 1e-8


class TimmOptions(OptimizerOptions):
    """Options of an optimizer of timm: its name there."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """An optimizer, and whether it treats each number by itself, so that replicas can share a tensor."""

    elementwise: bool = True


class ScheduleOptions(Options):
    """Options of every schedule: `warmup` in epochs."""

    warmup: NonNegativeFloat = 0.0  # epochs of linear warm-up


class StepOptions(ScheduleOptions):
    """Options of the step schedule: `step_size` in epochs."""

    step_size: PositiveFloat = 10.0  # epochs
    gamma: PositiveFloat = 0.1


OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    "sgd": OptimizerEntry(
        "momentum 0.9 unless told otherwise; decay is part of the gradient", _MODULE + "sgd", SGDOptions
    ),
    "adam": OptimizerEntry("decay is part of the gradient", _MODULE + "adam", AdamOptions),
    "adamw": OptimizerEntry("decay is apart from the gradient", _MODULE + "adamw", AdamOptions),
    "rmsprop": OptimizerEntry("decay is part of the gradient", _MODULE + "rmsprop", RMSpropOptions),
    "timm": OptimizerEntry(
        "any of timm's, as timm:NAME; trained one run at a time", _MODULE + "timm", TimmOptions, elementwise=False
    ),
}


SCHEDULES: Mapping[str, Entry] = {
    "constant": Entry("the learning rate stays", _MODULE + "constant", ScheduleOptions),
    "cosine": Entry("falls along half a cosine to zero at the end", _MODULE + "cosine", ScheduleOptions),
    "step": Entry("is multiplied by gamma every step_size epochs", _MODULE + "step", StepOptions),
}


def default_lr(optimizer: str) -> float:
    """Returns the learning rate of an optimizer when none is given."""
    options = OPTIMIZERS[optimizer].options if optimizer in OPTIMIZERS else OptimizerOptions
    assert issubclass(options, OptimizerOptions)
    return options.default_lr
