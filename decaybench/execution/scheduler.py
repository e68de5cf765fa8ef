"""Trains the missing runs of a study on any executor, and writes each record as soon as its run is finished."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from decaybench.errors import UsageError
from decaybench.execution.job import Executor, Job, Jobs, Message
from decaybench.execution.options import ExecutionOptions, Placement, local_workers
from decaybench.registry import EXECUTORS, imports
from decaybench.results.store import Record, StudyFolder
from decaybench.strategies.plan import make_plan
from decaybench.study.config import RunConfig
from decaybench.training import checkpoint
from decaybench.training.data import Data, load
from decaybench.training.model import build_model
from decaybench.training.precision import check as check_precision
from decaybench.training.stacked.cohorts import capacity, cohort_key, cohorts
from decaybench.training.trainer import Epoch

MAX_TRIES = 3
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Event:
    """An event of a running study.

    Attributes:
        worker: Name of the worker.
        configs: The runs that the event is about.
        epochs: Epochs that ended.
        records: Records of runs that are finished and written.
        trouble: A sentence about what went wrong; the study goes on.
        failed: A run that is given up.
        ended: Whether the worker is done with these runs.
    """

    worker: str
    configs: tuple[RunConfig, ...]
    epochs: tuple[Epoch, ...] = ()
    records: tuple[Record, ...] = ()
    trouble: str | None = None
    failed: RunConfig | None = None
    ended: bool = False


@dataclass
class Scheduler:
    """Plans the jobs of a study, writes its records and retries what was lost.

    Attributes:
        executor: What trains the jobs.
        folder: Where the records go.
        device: The device of training, by which the number of runs in a job is planned.
        workers: Number of workers among which runs are divided.
        every: Seconds between two checkpoints.
        jobs_per_gpu: Number of jobs that share a GPU.
    """

    executor: Executor
    folder: StudyFolder
    device: torch.device
    workers: int = 1
    every: float = 60.0
    jobs_per_gpu: int = 1
    _data: dict[tuple[str, float, int | None], Data] = field(default_factory=dict)
    _tries: Counter[tuple[str, int]] = field(default_factory=Counter)

    def data(self, config: RunConfig) -> Data:
        """Loads the data of a run on the CPU; one data set is kept at a time."""
        key = config.data_key()
        if key not in self._data:
            self._data.clear()
            self._data[key] = load(config, CPU)
        return self._data[key]

    def check(self, missing: list[RunConfig]) -> None:
        """Builds every network and plan once, so that what cannot work fails before anything is trained.

        Raises:
            DecaybenchError: For data that is missing, networks that do not fit it, numbers the device does not have.
        """
        check_precision(missing, self.device)
        for config in {(c.data_key(), *_parts(c)): c for c in missing}.values():
            data = self.data(config)
            make_plan(config, build_model(config, data.shape, data.classes))

    def run(self, missing: list[RunConfig]) -> Iterator[Event]:
        """Trains runs and writes each record when it is finished.

        Args:
            missing: The runs, in the order in which they should be trained.

        Raises:
            DecaybenchError: When a record cannot be written, or a run is not possible.
        """
        jobs = Jobs(self._plan(missing), lambda config: self.folder.has(config.run_id))
        for message in self.executor.run(jobs, self.data):
            yield from self._receive(message, jobs)

    def _plan(self, missing: list[RunConfig]) -> Iterator[Job]:
        """Plans the jobs: first those that have a checkpoint, as they were, then the other runs in new cohorts."""
        lacking = {run.run_id: run for run in missing}
        for name, content in self.folder.checkpoints().items():
            configs = checkpoint.configs(content)
            unfinished = [c for c in configs or () if c.run_id in lacking]
            if not configs or not unfinished:
                self.folder.remove_checkpoint(name)
                continue
            yield Job(tuple(configs), content, self.every)
            for config in unfinished:
                del lacking[config.run_id]
        rest = [run for run in missing if run.run_id in lacking]
        groups = {cohort_key(run): run for run in rest}
        sizes = {key: capacity(run, self.data(run), self.device, self.jobs_per_gpu) for key, run in groups.items()}
        yield from (Job(tuple(cohort), None, self.every) for cohort in cohorts(rest, sizes, self.workers))

    def _receive(self, message: Message, jobs: Jobs) -> Iterator[Event]:
        job = message.job
        if message.saved is not None:
            self.folder.write_checkpoint(_name(job), message.saved)
        for record in message.records:
            self.folder.write(record)
        yield Event(message.worker, job.configs, message.epochs, message.records, ended=message.ended)
        if message.error is not None:
            yield from self._failed(message, jobs)
        if message.ended:
            self.folder.remove_checkpoint(_name(job))

    def _failed(self, message: Message, jobs: Jobs) -> Iterator[Event]:
        """Plans a lost job again from its checkpoint, and one that failed in halves, until a run is alone."""
        if message.kind == "usage":
            raise UsageError(message.error)
        left = tuple(c for c in message.job.configs if not self.folder.has(c.run_id))
        self._tries[_name(message.job), len(left)] += 1
        tries, what = self._tries[_name(message.job), len(left)], f"{message.error}".rstrip(".")
        if message.kind == "lost" and tries == 1:
            saved = self.folder.checkpoints().get(_name(message.job))
            jobs.add(replace(message.job, saved=saved))
            yield Event(message.worker, left, trouble=f"{what}. Trying again.")
        elif len(left) > 1:
            for part in (left[: len(left) // 2], left[len(left) // 2 :]):
                jobs.add(Job(part, None, self.every))
            yield Event(message.worker, left, trouble=f"{what}. Trying again in two halves.")
        elif left and tries < MAX_TRIES:
            jobs.add(Job(left, None, self.every))
            yield Event(message.worker, left, trouble=f"{what}. Trying again.")
        elif left:
            yield Event(message.worker, left, trouble=f"{what}. It failed {tries} times.", failed=left[0])


def _parts(config: RunConfig) -> tuple[str, ...]:
    """Returns what a model and its plan are built from."""
    return tuple(s.label for s in (config.network, config.activation, config.strategy, config.optimizer))


def _name(job: Job) -> str:
    """Returns the name of a job's checkpoint, whatever the order of its runs."""
    return min(config.run_id for config in job.configs)


def make_scheduler(folder: StudyFolder, options: ExecutionOptions, runs: int) -> Scheduler:
    """Builds the scheduler of a study.

    Args:
        folder: Where the records go.
        options: Where the runs are trained.
        runs: Number of runs to do.

    Raises:
        UsageError: When the device or the cluster is not there.
    """
    name = options.executor
    if name == "auto":
        name = "processes" if local_workers(options, runs)[1] > 1 else "inline"
    placed: Placement = imports.load(EXECUTORS[name].target)(options, runs)
    return Scheduler(
        placed.executor, folder, placed.device, placed.workers, options.checkpoint_every, placed.jobs_per_gpu
    )
