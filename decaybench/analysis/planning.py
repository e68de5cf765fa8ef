"""Estimates how many seeds, and how many test examples, a narrower interval would take."""

import math
from typing import NamedTuple

import numpy as np

from decaybench.analysis.cells import Cell
from decaybench.analysis.evidence import NEW_EXAMPLES, NEW_SPLITS, THESE_EXAMPLES
from decaybench.analysis.pairs import Pairs, pairs_of, split_by_seed, test_share
from decaybench.analysis.statistics import Components, components, examples_needed, seeds_needed
from decaybench.registry.metrics import Metric

LIMIT = 0.7  # examples limit an interval that keeps this share of its width with any number of seeds


class Needed(NamedTuple):
    """What an interval of a wanted width would take for one method.

    Attributes:
        strategy, weight_decay: The method's first cell.
        seeds: Seeds with as many test examples as now; None where no number is enough.
        examples: Test examples with as many seeds as now; None where no number is enough, and where they do not count.
        scope: What the interval would speak about.
    """

    strategy: str
    weight_decay: float
    seeds: float | None
    examples: float | None
    scope: str


def narrowest(pairs: Pairs, metric: Metric) -> float | None:
    """Returns the half-width that an interval of a difference keeps with any number of seeds, in the metric's unit.

    None where seeds are the larger part of its error, and where records hold no outcome of each example.
    """
    table = pairs.outcomes(metric.name)
    parts = None if table is None else components(table)
    if table is None or parts is None:
        return None
    least = parts.error(math.inf, table.shape[1])
    return 1.96 * least if least > LIMIT * parts.error(*table.shape) else None


def plan(found: list[Cell], metric: Metric, baseline: str, half: float, fixed: bool) -> list[Needed]:
    """Estimates what each difference of one question would take to be known to ±half.

    Each interval is taken by itself, with normal quantiles. Methods with one seed only are left out.

    Args:
        found: The cells of the question.
        metric: What is compared.
        baseline: The strategy that the others are compared with.
        half: Half the width of the intervals, in the unit in which differences are written.
        fixed: Whether they are to be about these test examples; they are where records hold no outcome of each.
    """
    needed = []
    for pairs in pairs_of(found, baseline):
        if not pairs.have(metric.name):
            continue
        width = metric.amount(half, float(np.mean(pairs.second.values(metric.name, pairs.seeds))))
        table = None if fixed else pairs.outcomes(metric.name)
        parts = None if table is None else components(table)
        named = str(pairs.first.config["strategy"]), pairs.first.config["weight_decay"]
        if table is not None and parts is not None:
            seeds, examples = table.shape
            both = seeds_needed(parts, examples, width), examples_needed(parts, seeds, width)
            needed.append(Needed(*named, *both, NEW_EXAMPLES))
        elif len(pairs.seeds) > 1:
            own_splits, variance = split_by_seed(pairs.first), float(np.var(pairs.differences(metric.name), ddof=1))
            share = test_share(pairs.first) if own_splits else 0.0  # overlap acts as a part that no seed takes away
            count = seeds_needed(Components(variance, share * variance, 0.0), 1.0, width)
            needed.append(Needed(*named, count, None, NEW_SPLITS if own_splits else THESE_EXAMPLES))
    return needed
