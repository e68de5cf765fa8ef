"""What a comparison with the baseline shows: differences in each metric, their intervals, and verdicts.

A family is the distinct methods of one question × the metrics; Holm's correction is over it. A contrast that was
named before the runs is corrected for its own decays only. Every interval is at the level at which its difference was
tested, so that a verdict and the interval beside it never contradict each other.
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
from decaybench.registry.metrics import Metric

LEVEL = 0.05
NEW_EXAMPLES, THESE_EXAMPLES, NEW_SPLITS = "new test examples", "these test examples", "new splits of these data"


@dataclass(frozen=True)
class Evidence:
    """The difference of one method to the baseline in one metric, and what follows from it.

    Attributes:
        metric: What is compared.
        differences: The difference of each seed.
        baseline: The baseline's mean.
        estimate: The mean difference with its error; None where nothing differs or there is one seed.
        scope: What images it speaks about.
        level: At which it was tested; its interval is at confidence 1 − level.
        p: The p-value after Holm's correction, or alone if the contrast was named before.
        low, high: The interval.
        margin: What counts as no difference, in the unit of the metric; None where nothing does.
    """

    metric: Metric
    differences: Sequence[float]
    baseline: float
    estimate: Estimate | None
    scope: str
    margin: float | None
    level: float = LEVEL
    p: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float | None:
        """The mean over seeds and images."""
        if self.estimate is not None:
            return self.estimate.value
        return sum(self.differences) / len(self.differences) if self.differences else None

    @property
    def detectable(self) -> float | None:
        """The true difference that a test at this level would have shown with a power of 80%."""
        if self.estimate is None or self.p is None or len(self.differences) < 3:
            return None
        found = self.estimate.detectable(self.level)
        return None if found > self.metric.high - self.metric.low else found

    @property
    def _tied(self) -> bool:
        """Whether no difference is more than rounding, for values of the baseline's size."""
        return max(map(abs, self.differences)) <= TIE_TOLERANCE * min(1.0, abs(self.baseline))

    @property
    def verdict(self) -> str | None:
        """``better``, ``worse``, ``the same within ±…``, ``never differed`` or ``cannot tell``; None for one seed."""
        if len(self.differences) < 2:
            return None
        if self.estimate is None and self._tied:
            return "never differed"
        if self.low is None or self.high is None:
            return "cannot tell"
        if self.margin is not None and -self.margin < self.low and self.high < self.margin:
            return f"the same within ±{self.metric.margin_shown:.3g}{self.metric.unit}"
        if self.low > 0 or self.high < 0:
            return "better" if (self.low > 0) == (self.metric.direction == "higher") else "worse"
        return "cannot tell"


def judged(family: Sequence[Evidence | None], primary: Sequence[bool]) -> list[Evidence | None]:
    """Tests the differences of one family together, and gives each its interval.

    What never differed counts as a comparison, too, so that the family does not depend on what was found.

    Args:
        family: Each distinct method in each metric; None where there is nothing to compare.
        primary: Which of them were named before; they are corrected for each other only.
    """
    out = list(family)
    for named in (True, False):
        chosen = [
            (i, e)
            for i, (e, p) in enumerate(zip(family, primary, strict=True))
            if e is not None and p == named and len(e.differences) > 1
        ]
        alone = [1.0 if e.estimate is None else e.estimate.p_value() for _, e in chosen]
        for (i, e), level, p in zip(chosen, holm_levels(alone), holm(alone), strict=True):
            if e.estimate is not None:
                low, high = e.estimate.interval(1 - level)
                most = e.metric.high - e.metric.low
                low, high = max(low, -most), min(high, most)
                out[i] = replace(e, level=level, p=p, low=low, high=high)
    return out


def watched(family: Sequence[Evidence | None]) -> list[Evidence | None]:
    """Gives each difference an interval that holds however often one looked, over all that were watched together.

    Args:
        family: Each distinct method in each metric; only the first metric is watched.
    """
    first = next((e.metric for e in family if e is not None), None)
    count = sum(e is not None and e.metric == first for e in family)
    out: list[Evidence | None] = []
    for evidence in family:
        if evidence is None or evidence.metric != first:
            out.append(None)
            continue
        interval = anytime_interval(evidence.differences, 1 - LEVEL / count)
        spread = evidence.estimate if interval.low is not None else None
        out.append(replace(evidence, estimate=spread, low=interval.low, high=interval.high, level=LEVEL / count))
    return out
