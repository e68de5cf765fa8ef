"""Trains jobs in processes of this machine; one that dies or hangs costs only its job."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from decaybench.errors import UsageError

if TYPE_CHECKING:
    from decaybench.execution.job import DataSource, Job, Jobs, Message
    from decaybench.execution.options import ExecutionOptions, Placement

PRELOAD = ["decaybench.execution.job", "torch._dynamo"]  # torch imports the second with the first optimizer


START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@contextmanager
def _safe_start() -> Iterator[None]:
    """Keeps new interpreters from putting the current folder first on their path, and Ctrl-C from stopping them.

    A file called random.py there would hide the standard library's; and only this process acts on Ctrl-C, also when it
    comes meanwhile: the signal is blocked, which new processes inherit, and not ignored.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    mask = None
    try:
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # which unblocks the signal when it starts
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def start_forkserver() -> None:
    """Starts the server that workers are forked from, which imports torch meanwhile so that workers start at once."""
    if START_METHOD != "forkserver":
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    from multiprocessing.forkserver import ensure_running

    with _safe_start():
        ensure_running()


class Worker:
    """A worker process and its job.

    Attributes:
        job: The job that the process has now.
        last_message: Time of its last message, by the monotonic clock, in seconds.
    """

    def __init__(self, number: int, device: str) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self.name = f"worker {number}"
        self.number, self.last_message = number, time.monotonic()
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        self._process: Any = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, device, self.name), daemon=True
        )
        with _safe_start():
            self._process.start()
        theirs.close()
        self._data_key: Any = None

    def assign(self, job: "Job", data: "DataSource") -> None:
        """Sends a job to the process, with the data if it does not have them yet."""
        from decaybench.execution.job import share_memory

        key = job.configs[0].data_key()
        given = None if key == self._data_key else share_memory(data(job.configs[0]))
        self._data_key, self.job, self.last_message = key, job, time.monotonic()
        with suppress(OSError):  # it died meanwhile: noticed when it is waited for
            self.connection.send((job, given))

    def stop(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def exit_reason(self) -> str:
        """Describes how the process ended."""
        self._process.join(1)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


def _serve(connection: Connection, device: str, name: str) -> None:
    """Trains jobs from a connection until it is closed."""
    import torch

    from decaybench.execution.job import DeviceData, Failure, failed, run_job, single_thread
    from decaybench.registry import imports
    from decaybench.registry.user_code import no_exit

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which writes the records
    cache = DeviceData(torch.device(device))
    with suppress(EOFError, OSError), single_thread(cache.device), no_exit():
        while True:
            job, given = connection.recv()
            try:
                imports.pin(job.sources)
                data = cache.data(job.configs[0], given)
            except Exception as error:
                failure = Failure.usage if isinstance(error, UsageError) else Failure.failed
                connection.send(failed(job.id, name, failure, str(error)))
                continue
            for message in run_job(job, data, name):
                connection.send(message)


class Processes:
    """Trains jobs in several processes at once.

    Args:
        devices: The devices; of several workers each takes the next one, and begins again with the first.
        workers: Number of processes.
        patience: Seconds without a message after which a worker is killed and its job lost.
    """

    def __init__(self, devices: Sequence[str], workers: int, patience: float) -> None:
        self._devices, self._count, self._patience = devices, workers, patience

    def run(self, jobs: "Jobs", data: "DataSource") -> "Iterator[Message]":
        workers = [self._worker(n) for n in range(1, min(self._count, len(jobs)) + 1)]
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
                for w in [w for w in workers if w.job and time.monotonic() - w.last_message > self._patience]:
                    yield self._lost(w, workers, f"it sent no message for {self._patience:g} s")
        finally:
            for w in workers:
                w.stop()

    def _worker(self, number: int) -> Worker:
        return Worker(number, self._devices[(number - 1) % len(self._devices)])

    def _receive(self, w: Worker, workers: list[Worker]) -> "Message":
        from decaybench.execution.job import Failure

        try:
            message: Message = w.connection.recv()
        except (EOFError, OSError):
            return self._lost(w, workers, w.exit_reason())
        w.last_message = time.monotonic()
        if message.failure is Failure.device:
            return self._lost(w, workers, message.error)
        if message.ended:
            w.job = None
        return message

    def _lost(self, w: Worker, workers: list[Worker], why: str) -> "Message":
        """Replaces a worker that is gone by a new one."""
        from decaybench.execution.job import Failure, failed

        job = w.job
        assert job is not None
        w.stop()
        workers[workers.index(w)] = self._worker(w.number)
        return failed(job.id, w.name, Failure.lost, f"{w.name} was lost: {why}")


def place(options: "ExecutionOptions", runs: int) -> "Placement":
    """Places the jobs of a study in processes of this machine; see `decaybench.registry.EXECUTORS`."""
    from decaybench.execution.options import Placement, local_workers

    devices, count = local_workers(options, runs)
    sharing = -(-count // len(devices))
    return Placement(Processes([*map(str, devices)], count, options.patience), devices[0], count, jobs_per_gpu=sharing)
