"""Jobs done here, one after another: for debugging, and for studies too small for more."""

from collections.abc import Iterator

import torch

from decaybench.errors import DecaybenchError
from decaybench.execution.job import DataOf, Jobs, Message, Place, one_thread, perform


class Inline:
    """Does jobs in this process."""

    def __init__(self, device: torch.device) -> None:
        self._place = Place(device)

    def run(self, jobs: Jobs, data: DataOf) -> Iterator[Message]:
        with one_thread(self._place.device):
            while job := jobs.take():
                first = job.configs[0]
                for message in perform(job, self._place.data(first, data(first)), "here"):
                    if message.kind == "broken":
                        raise DecaybenchError(f"{message.error} Run the same command again: finished runs are kept.")
                    yield message
