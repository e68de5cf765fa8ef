"""Trains jobs in this process, one after another: for debugging and for small studies."""

from collections.abc import Iterator

import torch

from decaybench.errors import DecaybenchError
from decaybench.execution.job import DataSource, DeviceData, Failure, Jobs, Message, run_job, single_thread
from decaybench.execution.options import ExecutionOptions, Placement, local_workers
from decaybench.registry import imports


class Inline:
    """Trains jobs in this process."""

    def __init__(self, device: torch.device) -> None:
        self._cache = DeviceData(device)

    def run(self, jobs: Jobs, data: DataSource) -> Iterator[Message]:
        with single_thread(self._cache.device):
            while job := jobs.take():
                imports.pin(job.sources)
                first = job.configs[0]
                for message in run_job(job, self._cache.data(first, data(first)), "here"):
                    if message.failure is Failure.device:
                        raise DecaybenchError(f"{message.error} Run the same command again: finished runs are kept.")
                    yield message


def place(options: ExecutionOptions, runs: int) -> Placement:
    """Places the jobs of a study in this process; see `decaybench.registry.EXECUTORS`."""
    (device, *_), _ = local_workers(options, runs)
    return Placement(Inline(device), device)
