"""The metrics: in which direction each is better, how it is written, and what counts as no difference.

A metric is known by the end of its name: ``test_accuracy``, ``validation_top5_accuracy`` and ``accuracy`` are of one
kind. A new kind is one entry here. Metrics of other names need a direction, ``name:min`` or ``name:max``.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from decaybench.errors import UsageError

Direction = Literal["higher", "lower"]
# How values and differences are written: a fraction in percent and points; a positive number and a share of the
# baseline's; any number as it is.
Scale = Literal["percent", "relative", "plain"]
PARTS = ("train", "validation", "test")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.@/-]{0,99}")


@dataclass(frozen=True)
class Kind:
    """A kind of metrics.

    Attributes:
        summary: One line for ``decaybench list``.
        direction: Whether ``higher`` or ``lower`` is better.
        scale: How it is written.
        margin: What counts as no difference: a fraction (``percent``), a share of the baseline's (``relative``), or in
            its own unit; None where nothing does.
        low, high: The smallest and the largest value that it can have.
    """

    summary: str
    direction: Direction
    scale: Scale
    margin: float | None = None
    low: float = -math.inf
    high: float = math.inf


HALF_A_POINT, TWO_PERCENT = 0.005, 0.02
_SHARE: tuple[Scale, float, float, float] = ("percent", HALF_A_POINT, 0.0, 1.0)
_POSITIVE: tuple[Scale, float, float] = ("relative", TWO_PERCENT, 0.0)
KINDS: Mapping[str, Kind] = {
    "accuracy": Kind("share of examples whose class is right", "higher", *_SHARE),
    "acc": Kind("the same, by its short name", "higher", *_SHARE),
    "f1": Kind("harmonic mean of precision and recall", "higher", *_SHARE),
    "precision": Kind("share of what was found that is right", "higher", *_SHARE),
    "recall": Kind("share of what is right that was found", "higher", *_SHARE),
    "auc": Kind("area under the ROC curve", "higher", *_SHARE),
    "map": Kind("mean average precision", "higher", *_SHARE),
    "iou": Kind("intersection over union", "higher", *_SHARE),
    "error": Kind("share of examples that are wrong, or a distance", "lower", "relative", TWO_PERCENT),
    "loss": Kind("what training minimizes, without penalties", "lower", "relative", TWO_PERCENT),
    "nll": Kind("negative log-likelihood", "lower", "relative", TWO_PERCENT),
    "perplexity": Kind("exponential of the loss of a token", "lower", *_POSITIVE),
    "ppl": Kind("the same, by its short name", "lower", *_POSITIVE),
    "bpb": Kind("bits per byte", "lower", *_POSITIVE),
    "mse": Kind("mean squared error", "lower", *_POSITIVE),
    "rmse": Kind("root of the mean squared error", "lower", *_POSITIVE),
    "mae": Kind("mean absolute error", "lower", *_POSITIVE),
    "wer": Kind("word error rate", "lower", *_POSITIVE),
    "fid": Kind("Fréchet inception distance", "lower", *_POSITIVE),
    "r2": Kind("share of the variance that is explained", "higher", "plain", HALF_A_POINT, high=1.0),
    "bleu": Kind("n-gram overlap of translations, 0 to 100", "higher", "plain", None, 0.0, 100.0),
}
_WAYS: Mapping[str, Direction] = {"min": "lower", "max": "higher", "lower": "lower", "higher": "higher"}


@dataclass(frozen=True)
class Metric:
    """A metric of a study.

    Attributes:
        name: As it is recorded, such as ``test_accuracy``.
        direction, scale, margin, low, high: As in `Kind`.
        whole: Whether its part is said, too.
    """

    name: str
    direction: Direction
    scale: Scale = "plain"
    margin: float | None = None
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False

    @property
    def title(self) -> str:
        """The name for people; a metric of the test part is called without it, unless another one is called so."""
        return (self.name if self.whole else self.name.removeprefix("test_")).replace("_", " ")

    @property
    def unit(self) -> str:
        """The unit of differences: points, a percentage of the baseline's, or none."""
        return {"percent": " points", "relative": "%", "plain": ""}[self.scale]

    def is_called(self, name: str) -> bool:
        """Tells whether a name is that of this metric, with its part or without."""
        return name in (self.name, self.title, self.name.removeprefix("test_"))

    def amount(self, shown: float, baseline: float) -> float:
        """Converts a difference from the unit in which it is written to that of the metric.

        Args:
            shown: In points, in percent of the baseline's, or as it is.
            baseline: Mean of the baseline.
        """
        return {"percent": shown / 100, "relative": shown / 100 * abs(baseline), "plain": shown}[self.scale]

    def text(self, value: float) -> str:
        """Writes a value in a few characters."""
        return f"{100 * value:.1f}%" if self.scale == "percent" else f"{value:.4g}"

    def margin_at(self, baseline: float) -> float | None:
        """Returns what counts as no difference, in the metric's own unit."""
        return self.margin * abs(baseline) if self.scale == "relative" and self.margin is not None else self.margin

    @property
    def margin_shown(self) -> float | None:
        """What counts as no difference, in the unit in which differences are written."""
        return self.margin if self.margin is None or self.scale == "plain" else 100 * self.margin


def kind_of(name: str) -> Kind | None:
    """Finds the kind of a metric by the end of its name."""
    words = re.split(r"[_./-]", name.lower())
    return None if "neg" in words or "negative" in words else KINDS.get(words[-1])


def metric(text: str, direction: Direction | None = None) -> Metric:
    """Makes a metric of a name such as ``validation_loss`` or ``score:max``.

    Args:
        text: The name, with its direction behind it where it is none that is known.
        direction: The direction of a name that has none; a known kind's own comes second.

    Raises:
        UsageError: When it is no name, or nothing says in which direction it is better.
    """
    name, colon, way = text.partition(":")
    if not NAME.fullmatch(name) or (colon and way not in _WAYS):
        raise UsageError(
            f"metric {text!r}: write a name such as validation_loss, or one with its direction: score:max."
        )
    kind = kind_of(name)
    wanted = _WAYS[way] if colon else direction or (kind.direction if kind else None)
    if wanted is None:
        raise UsageError(
            f"metric {name!r}: nothing says whether less or more of it is better; write {name}:min or {name}:max "
            f"(known by their names are those that end in {', '.join(KINDS)})."
        )
    if kind is None or wanted != kind.direction:  # what is said counts: it is something else of that name
        return Metric(name, wanted)
    return Metric(name, wanted, kind.scale, kind.margin, kind.low, kind.high)


def shown(name: str) -> Metric:
    """Makes a metric for showing its values, whatever its direction is.

    Raises:
        UsageError: When it is no name.
    """
    return metric(name) if kind_of(name) else metric(name, "lower")


def reported(recorded: Mapping[str, Direction]) -> tuple[Metric, ...]:
    """Chooses what a report compares where nobody asked: the metrics of the test part, the loss last.

    Without a test part it is the validation part, and without that everything.

    Args:
        recorded: The direction of each metric that runs recorded.
    """
    for part in ("test_", "validation_", "val_", ""):
        names = [name for name in recorded if name.startswith(part)]
        if names:
            break
    ordered = sorted(names, key=lambda name: name.endswith("loss"))
    return tuple(metric(name, recorded[name]) for name in ordered)


def named(names: Iterable[str], recorded: Mapping[str, Direction], columns: Collection[str] = ()) -> tuple[Metric, ...]:
    """Makes the metrics that were asked for.

    Args:
        names: As `metric` takes them.
        recorded: The direction of each metric that runs recorded with one.
        columns: Everything that runs recorded; empty means that it is not known.

    Raises:
        UsageError: When one was never recorded, or nothing says in which direction it is better.
    """
    found = []
    for text in names:
        name, colon, way = text.partition(":")
        name = name if name in recorded or f"test_{name}" not in recorded else f"test_{name}"
        if columns and name not in columns:
            there = [one for one in columns if one in recorded or kind_of(one)] or list(columns)
            raise UsageError(f"metric {name!r}: no run recorded it; recorded are {', '.join(there)}.")
        found.append(metric(name + colon + way, recorded.get(name)))
    return tuple({one.name: one for one in found}.values())


# What training on classes is compared in.
TESTED = (metric("test_accuracy"), metric("test_loss"))
