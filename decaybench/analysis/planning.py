"""Estimates how many seeds, and how many test images, a narrower interval would take."""

import math
from typing import NamedTuple

from decaybench.analysis.cells import Cell
from decaybench.analysis.pairs import Pairs, pairs_of
from decaybench.analysis.statistics import components, examples_needed, seeds_needed

LIMIT = 0.7  # images limit an interval that keeps this share of its width with any number of seeds


class Needed(NamedTuple):
    """What an interval of a wanted width would take for one method.

    Attributes:
        strategy, weight_decay: The method's first cell.
        seeds: Seeds with as many test images as now; None where images are the limit.
        images: Test images with as many seeds as now; None where seeds are the limit.
    """

    strategy: str
    weight_decay: float
    seeds: float | None
    images: float | None


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


def plan(found: list[Cell], baseline: str, half: float) -> list[Needed]:
    """Estimates what each difference in accuracy of one question would take to be known to ±half, a fraction.

    Each interval is taken by itself, with normal quantiles. Methods whose records hold no outcome of each image, or
    only one seed, are left out.
    """
    needed = []
    for pairs in pairs_of(found, baseline):
        table = pairs.outcomes("accuracy")
        parts = None if table is None else components(table)
        if table is None or parts is None:
            continue
        seeds, images = table.shape
        cell = pairs.first.config
        both = seeds_needed(parts, images, half), examples_needed(parts, seeds, half)
        needed.append(Needed(str(cell["strategy"]), cell["weight_decay"], *both))
    return needed
