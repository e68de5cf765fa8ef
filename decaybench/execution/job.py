"""A job, its messages, and how a worker trains it, whatever the executor."""

import gc
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

import torch

from decaybench.errors import DecaybenchError, UsageError
from decaybench.native import keep_freed_memory
from decaybench.registry import imports
from decaybench.registry.metrics import PARTS
from decaybench.registry.user_code import place_of
from decaybench.results.record import Record
from decaybench.study.config import RunConfig
from decaybench.training import checkpoint
from decaybench.training.cuda_graph import is_out_of_memory
from decaybench.training.data import Data, Part, load
from decaybench.training.provenance import provenance
from decaybench.training.trainer import Epoch, Finished, Training

HEARTBEAT_SECONDS = 0.5  # between two messages without news


class Failure(StrEnum):
    """Why a job cannot go on."""

    usage = "usage"  # for the user, and would come again
    memory = "memory"  # fewer runs at once may fit
    lost = "lost"  # the worker died or hung
    device = "device"  # the GPU takes no more work from this process
    user_code = "user_code"  # the user's own code, which would fail again
    failed = "failed"  # anything else


@dataclass(frozen=True)
class Job:
    """Runs that train together.

    Attributes:
        configs: The runs of the job.
        stacked: Whether they train as one stack.
        saved: A checkpoint of the runs to go on from.
        checkpoint_seconds: Seconds between two checkpoints.
        data_fingerprint: Fingerprint of the data that was planned.
        sources: Contents of the user's own files that the runs need; imports use these.
        keep_weights: Whether the weights of finished runs are sent, too.
    """

    configs: tuple[RunConfig, ...]
    stacked: bool
    saved: bytes | None = None
    checkpoint_seconds: float = 60.0
    data_fingerprint: str | None = None
    sources: imports.Sources = field(default_factory=dict)
    keep_weights: bool = False

    @property
    def id(self) -> str:
        """The name of the job and of its checkpoint, whatever the order of its runs."""
        return min(config.run_id for config in self.configs)


@dataclass(frozen=True)
class Message:
    """A message from a worker about its job.

    Attributes:
        job_id: The job that the message is about.
        worker: Name of the worker.
        epochs: Epochs of its runs that ended.
        records: Records of runs that are finished, with provenance.
        weights: Their weights as the content of a safetensors file, by run id, where they are kept.
        saved: A checkpoint of the job.
        ended: Whether the job is done or cannot go on.
        failure: Why it cannot go on.
        error: The same in words.
        details: The traceback.
        remark: A sentence for the user; the job goes on.
    """

    job_id: str
    worker: str = ""
    epochs: tuple[Epoch, ...] = ()
    records: tuple[Record, ...] = ()
    weights: Mapping[str, bytes] = field(default_factory=dict)
    saved: bytes | None = None
    ended: bool = False
    failure: Failure | None = None
    error: str = ""
    details: str = ""
    remark: str = ""


def failed(job_id: str, worker: str, failure: Failure, error: str, details: str = "") -> Message:
    """Makes the last message of a job that cannot go on."""
    return Message(job_id, worker, ended=True, failure=failure, error=error, details=details)


class Executor(Protocol):
    """Trains jobs somewhere."""

    def run(self, jobs: "Jobs", data: "DataSource") -> Iterator[Message]:
        """Trains jobs until none is left and none is under way; more may be added meanwhile."""


class Jobs:
    """A queue of the jobs that are still to do.

    Args:
        jobs: The jobs in their order.
        is_finished: Tells whether a run is finished; called when its job is taken, since another process may have
            done it.
    """

    def __init__(self, jobs: Iterable[Job], is_finished: Callable[[RunConfig], bool]) -> None:
        self._queue, self._is_finished = deque(jobs), is_finished
        self._taken: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job) -> None:
        self._queue.append(job)

    def take(self) -> Job | None:
        """Takes the next job, without the runs that are finished; None where there is none."""
        while self._queue:
            job = self._queue.popleft()
            left = tuple(config for config in job.configs if not self._is_finished(config))
            if left:
                job = job if job.saved is not None else replace(job, configs=left)
                self._taken[job.id] = job
                return job
        return None

    def taken(self, job_id: str) -> Job:
        """Returns a job that was taken."""
        return self._taken[job_id]


class DataSource(Protocol):
    """A function that loads the data of a run, on the CPU."""

    def __call__(self, config: RunConfig) -> Data: ...


def run_job(job: Job, data: Data, worker: str = "") -> Iterator[Message]:
    """Trains a job on the device of its data, and yields messages; an error becomes a message, too."""
    last = Message(job.id, worker, ended=True)
    try:
        yield from _train(job, data, worker)
    except torch.OutOfMemoryError as error:
        last = failed(job.id, worker, Failure.memory, str(error).partition("\n")[0])
    except UsageError as error:
        last = failed(job.id, worker, Failure.usage, str(error), traceback.format_exc())
    except DecaybenchError as error:
        last = failed(job.id, worker, _failure(error.__cause__), str(error), traceback.format_exc())
    except Exception as error:
        last = failed(job.id, worker, _failure(error), f"{type(error).__name__}: {error}", traceback.format_exc())
    if data.train.x.is_cuda and last.failure is not Failure.device:  # the next job needs the memory, graphs included
        gc.collect()
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # an error of a kernel comes late: the GPU takes no more work from this process
            last = failed(job.id, worker, Failure.device, f"{type(error).__name__}: {error}", traceback.format_exc())
    yield last


def _failure(error: BaseException | None) -> Failure:
    if is_out_of_memory(error):
        return Failure.memory
    if isinstance(error, torch.AcceleratorError):
        return Failure.device
    return Failure.user_code if error is not None and place_of(error) else Failure.failed


def _train(job: Job, data: Data, worker: str) -> Iterator[Message]:
    yield Message(job.id, worker)
    if job.data_fingerprint not in (None, data.fingerprint):
        raise DecaybenchError(f"The data set {job.configs[0].dataset.label} has changed since the study began.")
    start = sign = saved = time.monotonic()
    training = Training(job.configs, data, job.stacked)
    about, before = provenance(data.train.x.device, training.net.models[0]), 0.0
    about["backends"] |= training.net.backends()
    about["examples"] = {"available": data.available, **{part: len(getattr(data, part).y) for part in PARTS}}
    if job.saved is not None:
        earlier, before = checkpoint.restore(training, job.saved)
        about = _resumed(about, earlier)
    remarked = False
    while not training.finished:
        events = training.advance()
        now = time.monotonic()
        if not remarked and (remark := training.remark):
            remarked = True
            about["step"] = remark
            yield Message(job.id, worker, remark=remark)
        done = [event for event in events if isinstance(event, Finished)]
        seconds = (before + now - start) / len(job.configs)  # its share of the time they took together
        extra = {**about, "seconds": round(seconds, 3), "together": len(job.configs)}
        records = tuple(replace(event.record, provenance=extra) for event in done)
        state = None
        if now - saved > job.checkpoint_seconds and not training.finished:
            state, saved = checkpoint.save(training, about, before + now - start), now
        if events or state is not None or now - sign > HEARTBEAT_SECONDS:
            epochs = tuple(event for event in events if isinstance(event, Epoch))
            kept = {event.config.run_id: training.weights(event.config) for event in done} if job.keep_weights else {}
            yield Message(job.id, worker, epochs, records, kept, state)
            sign = now


def _resumed(about: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Adds where a run was computed before, if that was another machine or by other means."""
    other = {key: earlier[key] for key in earlier if key != "started" and earlier[key] != about.get(key)}
    return {**about, "resumed_from": other} if other else about


def to_device(data: Data, device: torch.device) -> Data:
    """Copies data to a device."""
    moved: dict[str, Any] = {}
    for name in PARTS:
        part: Part = getattr(data, name)
        moved[name] = Part(part.x.to(device), part.y.to(device))
    return replace(data, **moved)


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
        keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)
