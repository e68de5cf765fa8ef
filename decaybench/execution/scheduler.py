"""Trains the missing runs of a study on any executor, and writes each record as soon as its run is finished."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from decaybench.errors import UsageError
from decaybench.execution.event import Event
from decaybench.execution.job import Executor, Failure, Job, Jobs, Message
from decaybench.execution.options import ExecutionOptions, Placement, local_workers
from decaybench.registry import EXECUTORS, imports
from decaybench.results.store import StudyFolder
from decaybench.strategies.plan import make_plan
from decaybench.study.config import DataKey, RunConfig
from decaybench.training import checkpoint
from decaybench.training.data import Data, load
from decaybench.training.model import build_model
from decaybench.training.precision import check as check_precision
from decaybench.training.stacked.cohorts import capacity, cohort_key, cohorts

MAX_TRIES = 3
CPU = torch.device("cpu")


@dataclass
class Scheduler:
    """Plans the jobs of a study, writes its records and retries what was lost.

    Attributes:
        executor: What trains the jobs.
        folder: Where the records go.
        device: The device of training, by which the number of runs in a job is planned.
        workers: Number of workers among which runs are divided.
        checkpoint_seconds: Seconds between two checkpoints.
        jobs_per_gpu: Number of jobs that share a GPU.
        memory: Free bytes of a GPU that this machine does not have; None where it has it.
        asked: All runs of the study; checkpoints of others are not touched.
        sources: Contents of the user's own files that the runs need.
        keep_weights: Whether the weights of finished runs are written, too.
    """

    executor: Executor
    folder: StudyFolder
    device: torch.device
    workers: int = 1
    checkpoint_seconds: float = 60.0
    jobs_per_gpu: int = 1
    memory: int | None = None
    asked: Sequence[RunConfig] = ()
    sources: dict[str, bytes] = field(default_factory=dict)
    keep_weights: bool = False
    _fingerprints: dict[DataKey, str] = field(default_factory=dict)
    _data: dict[DataKey, Data] = field(default_factory=dict)
    _tries: Counter[tuple[str, int]] = field(default_factory=Counter)
    _remarks: set[str] = field(default_factory=lambda: {""})

    def data(self, config: RunConfig) -> Data:
        """Loads the data of a run on the CPU; one data set is kept at a time.

        Raises:
            UsageError: When it is not what it was before in this study.
        """
        key = config.data_key()
        if key not in self._data:
            self._data.clear()
            data = load(config, CPU)
            before = self._fingerprints.setdefault(key, data.fingerprint)
            if before != data.fingerprint:
                raise self.folder.changed_data(config.dataset.label, before, data.fingerprint)
            self._data[key] = data
        return self._data[key]

    def check(self, missing: list[RunConfig], finished: Mapping[str, str] | None = None) -> None:
        """Builds every network and plan once, so that what cannot work fails before anything is trained.

        Args:
            missing: The runs to train.
            finished: Fingerprints of the data of finished runs of the study, by run id.

        Raises:
            DecaybenchError: For data that is missing or has changed, networks that do not fit it, numbers the device
                does not have.
        """
        check_precision(missing, self.device)
        self.sources = _sources(missing)
        imports.pin(self.sources)
        unseen = imports.unseen()
        for config in self.asked:
            if finished and config.run_id in finished:
                self._fingerprints.setdefault(config.data_key(), finished[config.run_id])
        for config in {(c.data_key()[:-1], *_parts(c)): c for c in missing}.values():  # of one split
            data = self.data(config)
            make_plan(config, build_model(config, data.shape, data.outputs, data.task))
        if unread := sorted(imports.unseen() - unseen):
            logging.getLogger(__name__).warning(
                "Warning: %s is imported in a way that reading your code does not show, so that a change of it will "
                "not be noticed; a plain import statement is.",
                ", ".join(unread),
            )

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
        asked = {run.run_id for run in self.asked} | set(lacking)
        for name, content in self.folder.checkpoints().items():
            configs = checkpoint.configs(content) if content is not None else None
            if configs is None:
                self.folder.remove_checkpoint(name)  # damaged, or of another version: its runs begin anew
                continue
            if not {config.run_id for config in configs} <= asked:
                continue  # of another study: only what this one asks for is trained
            unfinished = [config for config in configs if config.run_id in lacking]
            if not unfinished:
                self.folder.remove_checkpoint(name)
                continue
            yield self._job(configs, content)
            for config in unfinished:
                del lacking[config.run_id]
        rest = [run for run in missing if run.run_id in lacking]
        groups = {cohort_key(run): run for run in rest}
        sizes = {key: self._capacity(run) for key, run in groups.items()}
        yield from (self._job(cohort) for cohort in cohorts(rest, sizes, self.workers))

    def _capacity(self, config: RunConfig) -> int:
        return capacity(config, self.data(config), self.device, self.jobs_per_gpu, self.memory)

    def _job(self, configs: Sequence[RunConfig], saved: bytes | None = None) -> Job:
        data, first = self.data(configs[0]), configs[0]
        stacked = self._capacity(first) > 0
        return Job(
            tuple(configs), stacked, saved, self.checkpoint_seconds, data.fingerprint, self.sources, self.keep_weights
        )

    def _receive(self, message: Message, jobs: Jobs) -> Iterator[Event]:
        job = jobs.taken(message.job_id)
        if message.saved is not None:
            self.folder.write_checkpoint(job.id, message.saved)
        for run_id, content in message.weights.items():
            self.folder.write_weights(run_id, content)
        for record in message.records:
            self.folder.write(record)
        if message.remark not in self._remarks:  # each once, however many jobs it holds for
            self._remarks.add(message.remark)
            yield Event(message.worker, job.configs, trouble=message.remark)
        yield Event(message.worker, job.configs, message.epochs, message.records, ended=message.ended)
        if message.failure is not None:
            yield from self._failed(message, job, jobs)
        elif message.ended:
            self.folder.remove_checkpoint(job.id)

    def _failed(self, message: Message, job: Job, jobs: Jobs) -> Iterator[Event]:
        """Plans a lost job again from its checkpoint, and one that failed in halves, until a run is alone."""
        if message.failure is Failure.usage:
            raise UsageError(message.error)
        left = tuple(c for c in job.configs if not self.folder.has(c.run_id))
        self._tries[job.id, len(left)] += 1
        tries, what = self._tries[job.id, len(left)], message.error.rstrip(".")
        if message.failure is Failure.lost and tries == 1:
            # The checkpoint stays where it is: this process may be killed before the job is taken again.
            jobs.add(replace(job, saved=self.folder.checkpoints().get(job.id)))
            yield Event(message.worker, left, trouble=f"{what}. Trying again.")
            return
        self.folder.remove_checkpoint(job.id)
        if len(left) > 1:
            for part in (left[: len(left) // 2], left[len(left) // 2 :]):
                jobs.add(replace(job, configs=part, saved=None))
            yield Event(message.worker, left, trouble=f"{what}. Trying again in two halves.")
        elif left and tries < MAX_TRIES and message.failure not in (Failure.memory, Failure.user_code):
            jobs.add(replace(job, configs=left, saved=None))
            yield Event(message.worker, left, trouble=f"{what}. Trying again.")
        elif left:
            times = "" if tries == 1 else f" It failed {tries} times."
            where = self.folder.write_error(left[0].run_id, message.details) if message.details else None
            where_text = f" The traceback is in {where}." if where else ""
            trouble = f"{what}.{times}{where_text}"
            yield Event(message.worker, left, trouble=trouble, details=message.details, failed=left[0])


def _sources(configs: Iterable[RunConfig]) -> dict[str, bytes]:
    """Reads the user's own files that runs need.

    Raises:
        UsageError: When they have changed since the study was read.
    """
    sources: dict[str, bytes] = {}
    own = {spec.name: spec for config in configs for spec in config.specs() if spec.source}
    imports.check_names(own)
    for name, spec in own.items():
        files = imports.source_files(name)
        if imports.fingerprint_of(name, files) != spec.source:
            raise UsageError(f"The source of {name} changed while the study was starting; run the same command again.")
        sources |= files
    return sources


def _parts(config: RunConfig) -> tuple[str, ...]:
    """Returns what a model and its plan are built from."""
    return tuple(s.label for s in (config.network, config.activation, config.strategy, config.optimizer))


def make_scheduler(
    folder: StudyFolder, options: ExecutionOptions, missing: Sequence[RunConfig], asked: Sequence[RunConfig] = ()
) -> Scheduler:
    """Builds the scheduler of a study.

    Args:
        folder: Where the records go.
        options: Where the runs are trained.
        missing: The runs to train.
        asked: All runs of the study.

    Raises:
        UsageError: When the device or the cluster is not there.
    """
    name, runs = options.executor, len(missing)
    if name == "auto":
        name = "processes" if local_workers(options, runs)[1] > 1 else "inline"
    placed: Placement = imports.load(EXECUTORS[name].target)(options, runs)
    return Scheduler(
        executor=placed.executor,
        folder=folder,
        device=placed.device,
        workers=placed.workers,
        checkpoint_seconds=options.checkpoint_every,
        jobs_per_gpu=placed.jobs_per_gpu,
        memory=placed.memory,
        asked=asked,
        keep_weights=options.keep_weights,
    )
