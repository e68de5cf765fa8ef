"""The tasks that networks are trained for, and the losses that they may be trained with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat

from decaybench.registry.entry import Entry, Fraction, Options
from decaybench.registry.metrics import PARTS, Direction, metric

_MODULE = "decaybench.training.tasks:"


@dataclass(frozen=True)
class TaskEntry(Entry):
    """Says what networks are trained for: the loss, what is recorded beside it, and what inputs are.

    Attributes:
        loss: The loss it is trained with where nothing else is asked for.
        metrics: What is recorded beside the loss, of each part.
        tokens: Whether inputs are sequences of whole numbers; otherwise they are images, or vectors of shape (F, 1, 1).
    """

    loss: str = ""
    metrics: tuple[str, ...] = ()
    tokens: bool = False

    @property
    def recorded(self) -> dict[str, Direction]:
        """The direction of everything that a run records."""
        names = [f"{part}_{what}" for part in PARTS for what in ("loss", *self.metrics)]
        return {name: metric(name).direction for name in names}


# Each target takes Arrays and returns the number of outputs that a network needs.
TASKS: Mapping[str, TaskEntry] = {
    "classification": TaskEntry(
        "one class an example", _MODULE + "classes", loss="cross-entropy", metrics=("accuracy",)
    ),
    "regression": TaskEntry("one number an example", _MODULE + "one", loss="mse", metrics=("mae",)),
    "next-token": TaskEntry(
        "the next of a sequence of tokens",
        _MODULE + "vocabulary",
        loss="cross-entropy",
        metrics=("accuracy",),
        tokens=True,
    ),
}


class CrossEntropyOptions(Options):
    """Options of cross-entropy: the share of label smoothing."""

    smoothing: Fraction = 0.0


class HuberOptions(Options):
    """Options of Huber's loss: where it turns from square to straight."""

    delta: PositiveFloat = 1.0


class FocalOptions(Options):
    """Options of the focal loss: the exponent of 1 − p."""

    gamma: Annotated[float, Field(ge=0)] = 2.0


@dataclass(frozen=True)
class LossEntry(Entry):
    """A loss of each example, and the tasks that can be trained with it."""

    tasks: tuple[str, ...] = ()


LOSSES: Mapping[str, LossEntry] = {
    "cross-entropy": LossEntry(
        "negative log-likelihood of the class, with label smoothing",
        _MODULE + "cross_entropy",
        CrossEntropyOptions,
        ("classification", "next-token"),
    ),
    "focal": LossEntry(
        "cross-entropy times (1 − p)^gamma (Lin et al. 2017)", _MODULE + "focal", FocalOptions, ("classification",)
    ),
    "mse": LossEntry("squared error", _MODULE + "squared_error", tasks=("regression",)),
    "huber": LossEntry("Huber's loss", _MODULE + "huber", HuberOptions, ("regression",)),
}
