"""What an executor is asked for, and what it promises: device, workers, patience."""

import os
from dataclasses import dataclass

import torch

from decaybench.execution.device import resolve
from decaybench.execution.job import Executor

PATIENCE_SECONDS = 600.0  # without a message; then a worker counts as hung


@dataclass(frozen=True)
class ExecutionOptions:
    """Where and how runs are to be trained.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        executor: A name of `decaybench.registry.EXECUTORS`, or ``auto``: processes where there is more than one worker.
        workers: A number, or ``auto``: one for each core, or one for a GPU.
        checkpoint_every: Seconds between two checkpoints.
        patience: Seconds without a message after which a worker counts as hung.
        ray_address: Address of the Ray cluster.
        ray_gpus: Number of GPUs for each job on it.
    """

    device: str = "auto"
    executor: str = "auto"
    workers: str = "auto"
    checkpoint_every: float = 60.0
    patience: float = PATIENCE_SECONDS
    ray_address: str = "auto"
    ray_gpus: float = 0.0


@dataclass(frozen=True)
class Placement:
    """An executor, ready to work.

    Attributes:
        executor: What trains the jobs.
        device: The device of every worker, by which the size of jobs is planned.
        workers: Number of jobs that are trained at once.
        jobs_per_gpu: Number of jobs that share one GPU.
    """

    executor: Executor
    device: torch.device
    workers: int = 1
    jobs_per_gpu: int = 1


def available_cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_workers(options: ExecutionOptions, runs: int) -> tuple[torch.device, int]:
    """Returns the device on this machine and the number of workers for some runs.

    Raises:
        UsageError: When the device is not there.
    """
    device = resolve(options.device)
    most = available_cores() if device.type == "cpu" else 1
    return device, min(runs, most if options.workers == "auto" else int(options.workers))
