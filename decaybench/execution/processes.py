"""Jobs done by processes of this machine. One that dies or hangs costs only its job."""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decaybench.execution.executors import ExecutionOptions, Placement
    from decaybench.execution.job import DataSource, Job, Jobs, Message

PRELOAD = ["decaybench.execution.job", "torch._dynamo"]  # torch imports the second with the first optimizer
PATIENCE_SECONDS = 600.0  # seconds without a sign of life after which a worker counts as hung


def start_forkserver() -> None:
    """Starts what workers are forked from: it imports torch meanwhile, and workers then start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    from multiprocessing.forkserver import ensure_running

    ensure_running()


class Worker:
    """One process and the job it has.

    Attributes:
        job: What it does now.
        alive: When it last gave a sign, by the monotonic clock, in seconds.
    """

    def __init__(self, number: int, device: str) -> None:
        context = multiprocessing.get_context("forkserver")
        self.name = f"worker {number}"
        self.number, self.alive = number, time.monotonic()
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, device, self.name), daemon=True)
        self._process.start()
        theirs.close()
        self._data_key: Any = None

    def assign(self, job: "Job", data: "DataSource") -> None:
        """Sends it a job; with the data, if it does not have them."""
        from decaybench.execution.job import share_memory

        key = job.configs[0].data_key()
        given = None if key == self._data_key else share_memory(data(job.configs[0]))
        self._data_key, self.job, self.alive = key, job, time.monotonic()
        with suppress(OSError):  # it died meanwhile: noticed when it is waited for
            self.connection.send((job, given))

    def stop(self) -> None:
        """Ends it now."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def exit_reason(self) -> str:
        """How it ended."""
        self._process.join(1)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


def _serve(connection: Connection, device: str, name: str) -> None:
    """A worker's life: it ends when whoever started it is gone."""
    import torch

    from decaybench.execution.job import DeviceData, run_job, single_thread

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who writes the records
    place = DeviceData(torch.device(device))
    with suppress(EOFError, OSError), single_thread(place.device):
        while True:
            job, given = connection.recv()
            try:
                data = place.data(job.configs[0], given)
            except Exception as error:
                from decaybench.execution.job import Message

                connection.send(Message(job, name, ended=True, error=str(error), kind="failed"))
                continue
            for message in run_job(job, data, name):
                connection.send(message)


class Processes:
    """Does jobs in several processes at once.

    Args:
        device: Of every worker.
        workers: How many.
        patience: Seconds without a sign of life after which a worker is ended and its job lost.
    """

    def __init__(self, device: str, workers: int, patience: float = PATIENCE_SECONDS) -> None:
        self._device, self._count, self._patience = device, workers, patience

    def run(self, jobs: "Jobs", data: "DataSource") -> "Iterator[Message]":
        workers = [Worker(n, self._device) for n in range(1, min(self._count, len(jobs)) + 1)]
        try:
            while True:
                for w in workers:
                    if w.job is None and (job := jobs.take()):
                        w.assign(job, data)
                if not any(w.job for w in workers):
                    return
                busy = {w.connection: w for w in workers if w.job is not None}
                for connection in wait(list(busy), timeout=1.0):
                    yield self._receive(busy[connection], workers)  # type: ignore[index]
                for w in [w for w in workers if w.job and time.monotonic() - w.alive > self._patience]:
                    yield self._lost(w, workers, f"it gave no sign of life for {self._patience:g} s")
        finally:
            for w in workers:
                w.stop()

    def _receive(self, w: Worker, workers: list[Worker]) -> "Message":
        try:
            message: Message = w.connection.recv()
        except (EOFError, OSError):
            return self._lost(w, workers, w.exit_reason())
        w.alive = time.monotonic()
        if message.kind == "broken":
            return self._lost(w, workers, f"{message.error}")
        if message.ended:
            w.job = None
        return message

    def _lost(self, w: Worker, workers: list[Worker], why: str) -> "Message":
        """Puts a new worker in the place of one that is gone."""
        from decaybench.execution.job import Message

        job = w.job
        assert job is not None
        w.stop()
        workers[workers.index(w)] = Worker(w.number, self._device)
        return Message(job, w.name, ended=True, error=f"{w.name} was lost: {why}", kind="lost")


def place(options: "ExecutionOptions", runs: int) -> "Placement":
    """Places the jobs of a study in processes of this machine; see `decaybench.registry.EXECUTORS`."""
    from decaybench.execution.executors import Placement, local_workers

    device, count = local_workers(options, runs)
    return Placement(Processes(str(device), count, options.patience), device, count, sharing=count)
