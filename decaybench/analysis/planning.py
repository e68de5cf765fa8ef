"""Estimates how many seeds, and how many test images, a narrower interval would take."""

import math
from typing import NamedTuple

import numpy as np

from decaybench.analysis.cells import Cell
from decaybench.analysis.evidence import NEW_IMAGES, NEW_SPLITS, THESE_IMAGES
from decaybench.analysis.pairs import Pairs, pairs_of, split_by_seed, test_share
from decaybench.analysis.statistics import Components, components, examples_needed, seeds_needed

LIMIT = 0.7  # images limit an interval that keeps this share of its width with any number of seeds


class Needed(NamedTuple):
    """What an interval of a wanted width would take for one method.

    Attributes:
        strategy, weight_decay: The method's first cell.
        seeds: Seeds with as many test images as now; None where no number is enough.
        images: Test images with as many seeds as now; None where no number is enough, and where they do not count.
        scope: What the interval would speak about.
    """

    strategy: str
    weight_decay: float
    seeds: float | None
    images: float | None
    scope: str


def narrowest(pairs: Pairs) -> float | None:
    """Returns the half-width, a fraction, that an interval of a difference in accuracy keeps with any number of seeds.

    None where seeds are the larger part of its error, and where records hold no outcome of each image.
    """
    table = pairs.outcomes("accuracy")
    parts = None if table is None else components(table)
    if table is None or parts is None:
        return None
    least = parts.error(math.inf, table.shape[1])
    return 1.96 * least if least > LIMIT * parts.error(*table.shape) else None


def plan(found: list[Cell], baseline: str, half: float, fixed: bool) -> list[Needed]:
    """Estimates what each difference in accuracy of one question would take to be known to ±half, a fraction.

    Each interval is taken by itself, with normal quantiles. Methods with one seed only are left out.

    Args:
        found: The cells of the question.
        baseline: The strategy that the others are compared with.
        half: Half the width of the intervals.
        fixed: Whether they are to be about these test images; they are where records hold no outcome of each image.
    """
    needed = []
    for pairs in pairs_of(found, baseline):
        table = None if fixed else pairs.outcomes("accuracy")
        parts = None if table is None else components(table)
        named = str(pairs.first.config["strategy"]), pairs.first.config["weight_decay"]
        if table is not None and parts is not None:
            seeds, images = table.shape
            both = seeds_needed(parts, images, half), examples_needed(parts, seeds, half)
            needed.append(Needed(*named, *both, NEW_IMAGES))
        elif len(pairs.seeds) > 1:
            own_splits, variance = split_by_seed(pairs.first), float(np.var(pairs.differences, ddof=1))
            share = test_share(pairs.first) if own_splits else 0.0  # overlap acts as a part that no seed takes away
            count = seeds_needed(Components(variance, share * variance, 0.0), 1.0, half)
            needed.append(Needed(*named, count, None, NEW_SPLITS if own_splits else THESE_IMAGES))
    return needed
