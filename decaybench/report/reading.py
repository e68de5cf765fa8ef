"""Says how to read a report: what its numbers are, and what its intervals hold over."""

from decaybench.analysis.comparison import ComparisonSettings, Summary, of
from decaybench.analysis.evidence import NEW_SPLITS, THESE_EXAMPLES
from decaybench.registry.metrics import Metric
from decaybench.report.numbers import joined

UNITS = {
    "percent": "{names} in %, its differences in percentage points. ",
    "relative": "Differences in {names} in % of the baseline's. ",
    "plain": "{names} as recorded. ",
}
CORRECTED = (
    "Differences: each at 95% or, where Holm's correction over the {family} of a question asks for it, more. A verdict "
    "stands where the interval is clear of 0{margins}. What would have shown is found with a power of 80%. "
)
NEW = "Intervals hold over new seeds and new test examples. "
THESE = "Intervals are Student's t over seeds, on these test examples. "
SPLITS = (
    "Every seed divided the data anew: intervals hold over new seeds and new splits of these data (Nadeau and Bengio's "
    "correction for overlapping splits). "
)
SOME_SPLITS = "Those of {count} cells whose seeds divided the data anew hold over new splits of these data. "
MIXED = (
    "Intervals hold over new seeds and new test examples, but for {count} cells without outcomes of each example: "
    "theirs are over seeds, on these test examples. "
)
LOST = "Every run diverged, so there is nothing to compare; a smaller learning rate may help. "
ONE = "One seed gives no interval and no verdict; more seeds do (--seeds 20). "
PRIMARY = "The contrast {name} was named before; it is corrected over its own decays only. "
ANYTIME = (
    "Seeds are added until the differences are known well enough on these test examples, or run out, so the intervals "
    "of differences are anytime-valid (t-test martingale), at 95% together; those of single means are Student's t. "
)


def how_to_read(summary: Summary, settings: ComparisonSettings) -> str:
    """Returns some sentences about the numbers of a report."""
    units = _units(summary.metrics)
    if settings.anytime:
        return units + ANYTIME
    if all(row["seeds"] == row["diverged"] for row in summary.rows):
        return units + LOST
    if all(row["seeds"] - row["diverged"] < 2 for row in summary.rows):
        return units + ONE
    first = summary.metrics[0]
    scopes = [of(row, first, "speaks_about") for row in summary.rows]
    fixed, splits = scopes.count(THESE_EXAMPLES), scopes.count(NEW_SPLITS)
    known = len(scopes) - scopes.count(None)
    if fixed == known:
        over = THESE if fixed else NEW
    elif splits == known:
        over = SPLITS
    else:
        over = MIXED.format(count=fixed) if fixed else NEW
        over += SOME_SPLITS.format(count=splits) if splits else ""
    compared = any(of(row, m, "difference") is not None for row in summary.rows for m in summary.metrics)
    named = PRIMARY.format(name=settings.primary) if settings.primary and compared else ""
    return units + over + (_rule(summary.metrics) + named if compared else "")


def _units(metrics: tuple[Metric, ...]) -> str:
    """Says in what unit each metric and its differences are."""
    parts = []
    for scale, text in UNITS.items():
        titles = [metric.title for metric in metrics if metric.scale == scale]
        if titles:
            sentence = text.format(names=joined(titles))
            parts.append(sentence[:1].upper() + sentence[1:])
    return "".join(parts)


def _rule(metrics: tuple[Metric, ...]) -> str:
    """Says when a verdict stands."""
    family = "methods" if len(metrics) == 1 else f"methods × ({', '.join(metric.title for metric in metrics)})"
    margins = [
        f"±{metric.margin_shown:.3g}{metric.unit}{'' if metric.scale == 'percent' else f' of the {metric.title}'}"
        for metric in metrics
        if metric.margin_shown is not None
    ]
    same = f"; one inside {', or '.join(margins)} counts as the same" if margins else ""
    return CORRECTED.format(family=family, margins=same)
