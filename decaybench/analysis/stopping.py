"""Chooses the seeds to add until every difference to the baseline is known well enough."""

import pandas as pd

from decaybench.analysis.cells import Cell, cells
from decaybench.analysis.comparison import baseline_of, differences_of
from decaybench.analysis.statistics import anytime_interval
from decaybench.study.config import RunConfig

FIRST_SEEDS = 5  # seeds of every cell before anything is judged
SEEDS_PER_ROUND = 4  # seeds that are added at once


def next_runs(runs: list[RunConfig], finished: pd.DataFrame, until: float, baseline: str) -> list[RunConfig]:
    """Returns the runs to do next; none when every difference is known, or all runs are done.

    A difference is known when its anytime-valid interval is narrow enough
    (`decaybench.analysis.statistics.anytime_interval`), which holds its promise although it is looked at again and
    again.

    Args:
        runs: All runs of the study, in its order.
        finished: The runs that are finished, as `decaybench.analysis.frame.runs_frame` makes them.
        until: The half-width of the interval that is asked for, as a fraction.
        baseline: The strategy that the others are compared with.
    """
    done = set(finished["run_id"])
    missing = [run for run in runs if run.run_id not in done]
    first = [run for run in missing if run.seed < FIRST_SEEDS]
    if first:
        return first
    wanted = _undecided(cells(finished), until, baseline)
    chosen: dict[str, RunConfig] = {}
    for run_ids, _ in sorted(wanted, key=lambda pair: -pair[1]):  # where the intervals are widest
        of = {run.cell_id for run in runs if run.run_id in run_ids}
        for cell_id in of:
            lacking = [run for run in missing if run.cell_id == cell_id]
            chosen |= {run.run_id: run for run in lacking[:SEEDS_PER_ROUND]}
    return list(chosen.values())


def _undecided(found: list[Cell], until: float, baseline: str) -> list[tuple[set[str], float]]:
    """Lists each cell whose difference is not known, and its baseline, as run ids, with the interval's half-width."""
    wanted = []
    for cell in found:
        other = baseline_of(cell, found, baseline, [])
        if other is None or other is cell:
            continue
        interval = anytime_interval(differences_of(cell, found, baseline, []))
        known = interval.low is not None and interval.high is not None
        half = (interval.high - interval.low) / 2 if known else float("inf")  # type: ignore[operator]
        if half > until:
            wanted.append(({run_id for c in (cell, other) for run_id in c.runs["run_id"]}, half))
    return wanted
