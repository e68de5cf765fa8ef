"""Where a study is done: the device, the executor, how many workers."""

import os
from dataclasses import dataclass

import torch

from decaybench.execution.device import resolve
from decaybench.execution.inline import Inline
from decaybench.execution.job import Executor
from decaybench.execution.processes import PATIENCE_SECONDS, Processes
from decaybench.execution.ray import Cluster, connect
from decaybench.execution.scheduler import Scheduler
from decaybench.results.store import StudyFolder


@dataclass(frozen=True)
class ExecutionOptions:
    """What is asked of the machine.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` …
        executor: ``inline``, ``processes``, ``ray``, or ``auto``: processes where there is more than one worker.
        workers: A number or ``auto``: one for each core, or one for a GPU.
        checkpoint_every: Seconds between two checkpoints.
        patience: Seconds without a sign of life after which a worker counts as hung.
        ray_address: Of the cluster.
        ray_gpus: GPUs for each job on it.
    """

    device: str = "auto"
    executor: str = "auto"
    workers: str = "auto"
    checkpoint_every: float = 60.0
    patience: float = PATIENCE_SECONDS
    ray_address: str = "auto"
    ray_gpus: float = 0.0


def available_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_scheduler(folder: StudyFolder, machine: ExecutionOptions, runs: int) -> Scheduler:
    """Builds what runs a study.

    Args:
        folder: Where the records go.
        machine: Where the runs are trained.
        runs: How many there are to do.

    Raises:
        UsageError: When the device or the cluster is not there.
    """
    if machine.executor == "ray":
        count = connect(machine.ray_address)
        # A job on the cluster sees the GPUs it was given, the first of which is its own; this machine may have none.
        kind = machine.device.partition(":")[0]
        kind = ("cuda" if machine.ray_gpus else "cpu") if kind == "auto" else kind
        where = torch.device("cuda") if kind == "cuda" else resolve(kind)
        gpus = machine.ray_gpus or float(kind == "cuda")
        cluster, sharing = Cluster(where, gpus, machine.patience), max(1, round(1 / gpus)) if gpus else 1
        return Scheduler(cluster, folder, where, count, machine.checkpoint_every, sharing)
    where = resolve(machine.device)
    each = available_cores() if where.type == "cpu" else 1
    count = min(runs, each if machine.workers == "auto" else int(machine.workers))
    executor: Executor = Inline(where)
    if machine.executor == "processes" or (machine.executor == "auto" and count > 1):
        executor = Processes(str(where), count, machine.patience)
    sharing = count if isinstance(executor, Processes) else 1
    return Scheduler(executor, folder, where, count, machine.checkpoint_every, sharing)
