"""Which executor does a study."""

import os

from decaybench.device import resolve
from decaybench.executors.inline import Inline
from decaybench.executors.processes import Processes
from decaybench.executors.work import Executor
from decaybench.results import StudyFolder
from decaybench.study import Driver


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def driver(folder: StudyFolder, device: str, executor: str, workers: str, every: float, runs: int) -> Driver:
    """Builds what runs a study.

    Args:
        folder: Where the records go.
        device: Of the command line; one process is enough for a GPU.
        executor: ``inline``, ``processes``, or ``auto``: processes where there is more than one worker.
        workers: A number or ``auto``: one for each core, or one for a GPU.
        every: Seconds between two checkpoints.
        runs: How many there are to do.
    """
    where = resolve(device)
    count = min(runs, (cores() if where.type == "cpu" else 1) if workers == "auto" else int(workers))
    chosen: Executor = Inline(where)
    if executor == "processes" or (executor == "auto" and count > 1):
        chosen = Processes(str(where), count)
    return Driver(chosen, folder, where, count, every)
