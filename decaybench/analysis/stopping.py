"""Chooses the seeds to add until every difference to the baseline is known well enough."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from decaybench.analysis.cells import Cell, cells
from decaybench.analysis.evidence import LEVEL
from decaybench.analysis.pairs import pairs_of
from decaybench.analysis.questions import questions
from decaybench.analysis.statistics import TIE_TOLERANCE, anytime_interval
from decaybench.registry.metrics import Metric
from decaybench.study.config import AnyConfig

FIRST_SEEDS = 5  # seeds of every cell before anything is judged
SEEDS_PER_ROUND = 4  # seeds that are added at once


def next_runs(
    runs: Sequence[AnyConfig], finished: pd.DataFrame, until: float, metric: Metric, baseline: str
) -> list[AnyConfig]:
    """Returns the runs to do next; none when every difference is known, or all runs are done.

    A difference is known when its anytime-valid interval is narrow enough
    (`decaybench.analysis.statistics.anytime_interval`), which holds its promise although it is looked at again and
    again; over the methods of a question the intervals hold together. It speaks about these test examples.

    Args:
        runs: All runs of the study, in its order.
        finished: The runs that are finished, as `decaybench.analysis.frame.runs_frame` makes them.
        until: The half-width of the interval that is asked for, in the unit in which differences are written.
        metric: What is compared.
        baseline: The strategy that the others are compared with.
    """
    if metric.name not in finished and f"test_{metric.name}" in finished:
        metric = replace(metric, name=f"test_{metric.name}")
    done = set(finished["run_id"])
    start = min((run.seed for run in runs), default=0)
    missing = [run for run in runs if run.run_id not in done]
    first = [run for run in missing if run.seed < start + FIRST_SEEDS]
    if first:
        return first
    wanted = _undecided(cells(finished), until, metric, baseline)
    chosen: dict[str, AnyConfig] = {}
    for run_ids, _ in sorted(wanted, key=lambda pair: -pair[1]):  # where the intervals are widest
        of = {run.cell_id for run in runs if run.run_id in run_ids}
        for cell_id in of:
            lacking = [run for run in missing if run.cell_id == cell_id]
            chosen |= {run.run_id: run for run in lacking[:SEEDS_PER_ROUND]}
    return list(chosen.values())


def _undecided(found: list[Cell], until: float, metric: Metric, baseline: str) -> list[tuple[set[str], float]]:
    """Lists each cell whose difference is not known, and its baseline, as run ids, with the interval's half-width."""
    wanted = []
    for part in questions(found):
        pairs = pairs_of(found[part], baseline)
        for pair in pairs:
            known = pair.have(metric.name)
            half = half_width(pair.differences(metric.name), len(pairs)) if known else float("inf")
            if not known or half > metric.amount(until, float(np.mean(pair.second.values(metric.name, pair.seeds)))):
                ids = {run_id for cell in (pair.first, pair.second) for run_id in cell.runs["run_id"]}
                wanted.append((ids, half))
    return wanted


def half_width(differences: list[float], watched: int) -> float:
    """Returns half the width of an anytime-valid interval, one of several that are watched together.

    Arms that never differed count as known: their interval would never become narrower.
    """
    if len(differences) >= FIRST_SEEDS and max(map(abs, differences)) < TIE_TOLERANCE:
        return 0.0
    interval = anytime_interval(differences, 1 - LEVEL / watched)
    if interval.low is None or interval.high is None:
        return float("inf")
    return (interval.high - interval.low) / 2
