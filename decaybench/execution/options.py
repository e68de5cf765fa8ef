"""What an executor is asked for, and what it promises: device, workers, patience."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from decaybench.execution.device import every
from decaybench.execution.job import Executor

CGROUPS = Path("/sys/fs/cgroup")
PATIENCE_SECONDS = 600.0  # without a message; then a worker counts as hung


@dataclass(frozen=True)
class ExecutionOptions:
    """Where and how runs are to be trained.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        executor: A name of `decaybench.registry.EXECUTORS`, or ``auto``: processes where there is more than one worker.
        workers: A number, or ``auto``: one for each core, or one for each GPU.
        checkpoint_every: Seconds between two checkpoints.
        patience: Seconds without a message after which a worker counts as hung.
        ray_address: Address of the Ray cluster.
        ray_gpus: Number of GPUs for each job on it.
        keep_weights: Whether the weights of finished runs are written, too.
    """

    device: str = "auto"
    executor: str = "auto"
    workers: str = "auto"
    checkpoint_every: float = 60.0
    patience: float = PATIENCE_SECONDS
    ray_address: str = "auto"
    ray_gpus: float = 0.0
    keep_weights: bool = False


@dataclass(frozen=True)
class Placement:
    """An executor, ready to work.

    Attributes:
        executor: What trains the jobs.
        device: The device of a worker, by which the size of jobs is planned.
        workers: Number of jobs that are trained at once.
        jobs_per_gpu: Number of jobs that share one GPU.
        memory: Free bytes of a GPU that this machine does not have; None where it has it.
    """

    executor: Executor
    device: torch.device
    workers: int = 1
    jobs_per_gpu: int = 1
    memory: int | None = None


def available_cores() -> int:
    """Counts the cores that this process may use: by affinity, and by the CPU quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return count if quota is None else max(1, min(count, int(quota)))


def _quota() -> float | None:
    """Reads the number of cores that the cgroup of this process may use; None where there is no limit."""
    try:
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                for folder in (CGROUPS / path.lstrip("/"), CGROUPS):
                    if (file := folder / "cpu.max").is_file():
                        quota, period = file.read_text("utf-8").split()
                        return None if quota == "max" else int(quota) / int(period)
            elif "cpu" in controllers.split(","):
                for folder in (CGROUPS / "cpu" / path.lstrip("/"), CGROUPS / "cpu"):
                    if (folder / "cpu.cfs_quota_us").is_file():
                        quota, period = ((folder / f"cpu.cfs_{k}_us").read_text("utf-8") for k in ("quota", "period"))
                        return None if int(quota) < 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return None


def local_workers(options: ExecutionOptions, runs: int) -> tuple[tuple[torch.device, ...], int]:
    """Returns the devices of this machine and the number of workers for some runs: one a GPU, or one a core.

    Raises:
        UsageError: When the device is not there.
    """
    devices = every(options.device)
    most = available_cores() if devices[0].type == "cpu" else len(devices)
    return devices, min(runs, most if options.workers == "auto" else int(options.workers))
