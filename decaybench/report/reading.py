"""Says how to read a report: what its numbers are, and what its intervals hold over."""

from decaybench.analysis.comparison import ComparisonSettings, Summary
from decaybench.analysis.evidence import NEW_SPLITS, THESE_IMAGES

UNITS = "Test accuracy in %, differences in percentage points, differences in test loss in % of the baseline's. "
CORRECTED = (
    "Differences: each at 95% or, where Holm's correction over the methods × (accuracy, loss) of a question asks for "
    "it, more. A verdict stands where the interval is clear of 0; one inside ±{margin:g} points, or ±{share:g}% of the "
    "loss, counts as the same. What would have shown is found with a power of 80%. "
)
NEW = "Intervals hold over new seeds and new test images. "
THESE = "Intervals are Student's t over seeds, on these test images. "
SPLITS = (
    "Every seed divided the data anew: intervals hold over new seeds and new splits of these data (Nadeau and Bengio's "
    "correction for overlapping splits). "
)
SOME_SPLITS = "Those of {count} cells whose seeds divided the data anew hold over new splits of these data. "
MIXED = (
    "Intervals hold over new seeds and new test images, but for {count} cells without outcomes of each image: theirs "
    "are over seeds, on these test images. "
)
ONE = "One seed gives no interval and no verdict; more seeds do (--seeds 20). "
PRIMARY = "The contrast {name} was named before; it is corrected over its own decays only. "
ANYTIME = (
    "Seeds are added until the differences are known well enough on these test images, or run out, so the intervals of "
    "differences are anytime-valid (t-test martingale), at 95% together; those of single accuracies are Student's t. "
)


def how_to_read(summary: Summary, settings: ComparisonSettings) -> str:
    """Returns some sentences about the numbers of a report."""
    if settings.anytime:
        return UNITS + ANYTIME
    if all(row["seeds"] - row["diverged"] < 2 for row in summary.rows):
        return UNITS + ONE
    fixed = sum(row["speaks_about"] == THESE_IMAGES for row in summary.rows)
    known = sum(row["speaks_about"] is not None for row in summary.rows)
    splits = sum(row["speaks_about"] == NEW_SPLITS for row in summary.rows)
    if fixed == known:
        over = THESE if fixed else NEW
    elif splits == known:
        over = SPLITS
    else:
        over = MIXED.format(count=fixed) if fixed else NEW
        over += SOME_SPLITS.format(count=splits) if splits else ""
    compared = any(row["difference"] is not None for row in summary.rows)
    rule = CORRECTED.format(margin=100 * settings.margin, share=100 * settings.loss_margin)
    named = PRIMARY.format(name=settings.primary) if settings.primary and compared else ""
    return UNITS + over + (rule + named if compared else "")
