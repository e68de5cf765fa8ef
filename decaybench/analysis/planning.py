"""Estimates how many seeds, and how many test images, a narrower interval would take."""

from typing import NamedTuple

from decaybench.analysis.cells import Cell
from decaybench.analysis.pairs import pairs_of
from decaybench.analysis.statistics import components, examples_needed, seeds_needed


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
