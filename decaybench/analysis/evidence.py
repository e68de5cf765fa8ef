"""What a comparison with the baseline shows: differences in accuracy and loss, their intervals, and verdicts.

A family is the distinct methods of one question × (accuracy, loss); Holm's correction is over it. A contrast that was
named before the runs is not corrected. Every interval is at the level at which its difference was tested, so that a
verdict and the interval beside it never contradict each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from decaybench.analysis.statistics import (
    TIE_TOLERANCE,
    Estimate,
    anytime_interval,
    holm,
    holm_levels,
)

LEVEL = 0.05
ACCURACY_MARGIN = 0.005  # a fraction: half a point
LOSS_MARGIN = 0.02  # of the baseline's loss
NEW_IMAGES, THESE_IMAGES = "new test images", "these test images"


@dataclass(frozen=True)
class Evidence:
    """The difference of one method to the baseline in one metric, and what follows from it.

    Attributes:
        metric: ``accuracy`` or ``loss``.
        differences: The difference of each seed.
        baseline: The baseline's mean.
        estimate: The mean difference with its error; None where nothing differs or there is one seed.
        scope: What images it speaks about.
        level: At which it was tested; its interval is at confidence 1 − level.
        p: The p-value after Holm's correction, or alone if the contrast was named before.
        low, high: The interval.
        margin: What counts as no difference.
    """

    metric: str
    differences: Sequence[float]
    baseline: float
    estimate: Estimate | None
    scope: str
    margin: float
    level: float = LEVEL
    p: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float | None:
        """The mean over seeds."""
        return sum(self.differences) / len(self.differences) if self.differences else None

    @property
    def detectable(self) -> float | None:
        """The true difference that a test at this level would have shown with a power of 80%."""
        few = self.estimate is None or len(self.differences) < 3
        return None if few or self.p is None else self.estimate.detectable(self.level)  # type: ignore[union-attr]

    @property
    def verdict(self) -> str | None:
        """``better``, ``worse``, ``the same within ±…``, ``never differed`` or ``cannot tell``; None for one seed."""
        if len(self.differences) < 2:
            return None
        if self.estimate is None and max(map(abs, self.differences)) < TIE_TOLERANCE:
            return "never differed"
        if self.low is None or self.high is None:
            return "cannot tell"
        if -self.margin < self.low and self.high < self.margin:
            return f"the same within ±{self._margin_text()}"
        if self.low > 0 or self.high < 0:
            return "better" if (self.low > 0) == (self.metric == "accuracy") else "worse"
        return "cannot tell"

    def _margin_text(self) -> str:
        if self.metric == "accuracy":
            return f"{100 * self.margin:g} points"
        return f"{100 * self.margin / self.baseline:.2g}%" if self.baseline else "0"


def judged(family: Sequence[Evidence | None], primary: Sequence[bool]) -> list[Evidence | None]:
    """Tests the differences of one family together, and gives each its interval.

    Args:
        family: Each distinct method in each metric; None where there is nothing to compare.
        primary: Which of them were named before, and are not corrected.
    """
    chosen = [i for i, e in enumerate(family) if e is not None and e.estimate is not None and not primary[i]]
    alone = [family[i].estimate.p_value() for i in chosen]  # type: ignore[union-attr]
    levels, corrected = dict(zip(chosen, holm_levels(alone), strict=True)), dict(zip(chosen, holm(alone), strict=True))
    out: list[Evidence | None] = []
    for i, evidence in enumerate(family):
        if evidence is None or evidence.estimate is None:
            out.append(evidence)
            continue
        level = levels.get(i, LEVEL)
        low, high = evidence.estimate.interval(1 - level)
        p = corrected.get(i, evidence.estimate.p_value())
        out.append(replace(evidence, level=level, p=p, low=low, high=high))
    return out


def watched(family: Sequence[Evidence | None]) -> list[Evidence | None]:
    """Gives each accuracy an interval that holds however often one looked, over all that were watched together."""
    count = sum(e is not None and e.metric == "accuracy" for e in family)
    out: list[Evidence | None] = []
    for evidence in family:
        if evidence is None or evidence.metric != "accuracy":
            out.append(None)
            continue
        interval = anytime_interval(evidence.differences, 1 - LEVEL / count)
        spread = evidence.estimate if interval.low is not None else None
        out.append(replace(evidence, estimate=spread, low=interval.low, high=interval.high, level=LEVEL / count))
    return out
