"""A job, its messages, and how a worker trains it, whatever the executor."""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from decaybench.errors import DecaybenchError, UsageError
from decaybench.execution.device import provenance
from decaybench.study.config import RunConfig
from decaybench.training import checkpoint
from decaybench.training.data import Data, Part, load
from decaybench.training.trainer import Epoch, Finished, Training

HEARTBEAT_SECONDS = 0.5  # seconds between two signs of life


@dataclass(frozen=True)
class Job:
    """Runs that train together.

    Attributes:
        configs: The runs of the job.
        saved: A checkpoint of the runs to go on from.
        every: Seconds between two checkpoints.
    """

    configs: tuple[RunConfig, ...]
    saved: bytes | None = None
    every: float = 60.0


@dataclass(frozen=True)
class Message:
    """A message from a worker about its job.

    Attributes:
        job: The job that the message is about.
        worker: Name of the worker.
        epochs: Epochs of its runs that ended.
        records: Records of runs that are finished, with provenance.
        saved: A checkpoint of the job.
        ended: Whether the job is done or cannot go on.
        error: Why the job cannot go on.
        kind: Of the error: ``usage`` is for the user and would come again; ``memory``: fewer runs at once may fit;
            ``lost``: the worker died or hung; ``broken``: its GPU takes no more work from this process; ``failed``:
            anything else.
    """

    job: Job
    worker: str = ""
    epochs: tuple[Epoch, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    saved: bytes | None = None
    ended: bool = False
    error: str | None = None
    kind: str = ""


class Executor(Protocol):
    """Trains jobs somewhere."""

    def run(self, jobs: "Jobs", data: "DataSource") -> Iterator[Message]:
        """Trains jobs until none is left and none is under way; more may be added meanwhile."""


class Jobs:
    """A queue of the jobs that are still to do.

    Args:
        jobs: The jobs in their order.
        has: Tells whether a run is finished; called when its job is taken, since another process may have done it.
    """

    def __init__(self, jobs: Iterable[Job], has: Callable[[RunConfig], bool]) -> None:
        self._queue, self._has = deque(jobs), has

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job) -> None:
        self._queue.append(job)

    def take(self) -> Job | None:
        """Takes the next job, without the runs that are finished; None where there is none."""
        while self._queue:
            job = self._queue.popleft()
            left = tuple(config for config in job.configs if not self._has(config))
            if left:
                return job if job.saved is not None else replace(job, configs=left)
        return None


class DataSource(Protocol):
    """A function that loads the data of a run, on the CPU."""

    def __call__(self, config: RunConfig) -> Data: ...


def run_job(job: Job, data: Data, worker: str = "") -> Iterator[Message]:
    """Trains a job on the device of its data, and yields messages; an error becomes a message, too."""
    last = Message(job, worker, ended=True)
    try:
        yield from _train(job, data, worker)
    except torch.OutOfMemoryError as error:
        last = replace(last, error=str(error).partition("\n")[0], kind="memory")
    except UsageError as error:
        last = replace(last, error=str(error), kind="usage")
    except DecaybenchError as error:
        last = replace(last, error=str(error), kind=_kind(error.__cause__))
    except Exception as error:
        last = replace(last, error=f"{type(error).__name__}: {error}", kind=_kind(error))
    if data.train.x.is_cuda and last.kind != "broken":  # the next job needs the memory, graphs included
        gc.collect()
        torch.cuda.empty_cache()
    yield last


def _kind(error: BaseException | None) -> str:
    return "broken" if isinstance(error, torch.AcceleratorError) else "failed"


def _train(job: Job, data: Data, worker: str) -> Iterator[Message]:
    yield Message(job, worker)
    about = provenance(data.train.x.device)
    start = sign = saved = time.monotonic()
    training = Training(job.configs, data)
    if job.saved is not None:
        checkpoint.restore(training, job.saved)
    while not training.finished:
        events = training.advance()
        now = time.monotonic()
        done = [event for event in events if isinstance(event, Finished)]
        seconds = (now - start) / len(job.configs)  # its share of the time they took together
        extra = {**about, "seconds": round(seconds, 3), "together": len(job.configs)}
        records = tuple({**event.record, "provenance": extra} for event in done)
        state = None
        if now - saved > job.every and not training.finished:
            state, saved = checkpoint.save(training), now
        if events or state is not None or now - sign > HEARTBEAT_SECONDS:
            epochs = tuple(event for event in events if isinstance(event, Epoch))
            yield Message(job, worker, epochs, records, state)
            sign = now


def to_device(data: Data, device: torch.device) -> Data:
    """Copies data to a device."""
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    moved = {name: Part(part.x.to(device), part.y.to(device)) for name, part in parts.items()}
    return Data(**moved, classes=data.classes, fingerprint=data.fingerprint)


def share_memory(data: Data) -> Data | None:
    """Moves data into memory that processes share; None without room for it: each process then loads its own."""
    try:
        for part in (data.train, data.validation, data.test):
            for tensor in (part.x, part.y):
                tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError):
        return None
    return data


class DeviceData:
    """A worker's device, and the data set that was used on it last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._key: Any = None
        self._data: Data | None = None

    def data(self, config: RunConfig, given: Data | None) -> Data:
        """Returns the data of a run on the device: what is given, or loaded here."""
        if self._key != config.data_key() or self._data is None:
            self._key, self._data = config.data_key(), None
            self._data = load(config, self.device) if given is None else to_device(given, self.device)
        return self._data


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Limits torch to one thread on a CPU, so that a run's bits do not depend on the number of cores."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
