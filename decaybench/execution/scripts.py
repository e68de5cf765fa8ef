"""Starts the user's training script for each run of a study, and takes over the records that its trials write."""

import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from decaybench.errors import UsageError
from decaybench.execution.event import Event
from decaybench.registry import EXECUTORS, imports
from decaybench.registry.imports import changed_files, script_files, script_fingerprint
from decaybench.results.record import DamagedRecordError, OtherVersionError, Record, loads
from decaybench.results.store import StudyFolder
from decaybench.study.config import ScriptConfig
from decaybench.trials.protocol import ENVIRONMENT, Files, Task

POLL_SECONDS = 0.05  # between two looks at what runs
STALE_SECONDS = 60.0  # after which an attempt without a task is of a study that was killed
LAST_LINES = 15  # of a failed script's output, that are shown with --debug
INTERPRETERS = ("python", "python3")  # the one that decaybench runs in: it has decaybench


@dataclass(frozen=True)
class ScriptJob:
    """One run of a script, and how to start it.

    Attributes:
        config: The run.
        metrics: What the study compares.
        folder: The study folder, as an absolute path.
        time_limit: Seconds after which it is ended; None means never.
        threads: Number of threads that its processes get, where the environment does not say it.
        gpus: The GPUs that it sees; None leaves them as they are.
    """

    config: ScriptConfig
    metrics: tuple[str, ...]
    folder: Path
    time_limit: float | None = None
    threads: int | None = None
    gpus: tuple[str, ...] | None = None

    @property
    def output(self) -> Path:
        """Where its output is kept."""
        return self.folder / "output" / f"{self.config.run_id}.txt"

    def words(self) -> list[str]:
        """Returns the words of its command line."""
        given = {"seed": self.config.seed, "strategy": self.config.strategy.label}
        given["weight_decay"] = repr(self.config.weight_decay)
        words = shlex.split(self.config.script)
        for name, value in given.items():
            words = [word.replace(f"{{{name}}}", str(value)) for word in words]
        for key, value in self.config.args.items():
            if value is True:
                words.append(f"--{key}")
            elif value is not None and value is not False:
                words += [f"--{key}", str(value)]
        return [sys.executable, *words[1:]] if words[0] in INTERPRETERS else words

    def environment(self) -> dict[str, str]:
        """Returns what its processes get beside the environment of this one."""
        added = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
        added["PYTHONUNBUFFERED"] = "1"
        if self.threads is not None and "OMP_NUM_THREADS" not in os.environ:
            added["OMP_NUM_THREADS"] = str(self.threads)
        if self.gpus is not None:
            added["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        return added


@dataclass(frozen=True)
class ScriptResult:
    """How the process of a script ended.

    Attributes:
        attempt: The folder with the files of its trial.
        code: Its exit code; negative for a signal; None when it was ended after its time limit.
        seconds: How long it ran.
    """

    attempt: Path
    code: int | None
    seconds: float


class Running:
    """A script that runs as a process of this machine, in a process group of its own.

    Args:
        job: What to start.

    Raises:
        UsageError: When the program cannot be started.
    """

    def __init__(self, job: ScriptJob) -> None:
        self.job = job
        attempts = job.folder / "attempts"
        attempts.mkdir(parents=True, exist_ok=True)
        job.output.parent.mkdir(exist_ok=True)
        self.attempt = Path(tempfile.mkdtemp(prefix=f"{job.config.run_id}-", dir=attempts))
        task = Task(job.config.model_dump(), job.metrics, str(self.attempt), os.getpid(), platform.node())
        environment = {**os.environ, **job.environment(), ENVIRONMENT: str(task.write())}
        self._start, self._read, words = time.monotonic(), 0, job.words()
        try:
            with job.output.open("wb") as output:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            shutil.rmtree(self.attempt, ignore_errors=True)
            raise UsageError(f"script: {words[0]} cannot be started: {error.strerror}.") from error

    def result(self) -> ScriptResult | None:
        """Returns how it ended; None while it runs."""
        code, seconds = self._process.poll(), time.monotonic() - self._start
        if code is None and self.job.time_limit is not None and seconds > self.job.time_limit:
            self.kill()
            return ScriptResult(self.attempt, None, seconds)
        if code is None:
            return None
        self.kill()  # what it has started and left behind
        return ScriptResult(self.attempt, code, seconds)

    def kill(self) -> None:
        """Ends it and everything that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()


def run_script(job: ScriptJob) -> ScriptResult:
    """Runs a script to its end on this machine, for executors that take functions."""
    running = Running(job)
    try:
        while (result := running.result()) is None:
            time.sleep(POLL_SECONDS)
    except BaseException:
        running.kill()
        raise
    return result


class Pool(Protocol):
    """Starts scripts somewhere.

    Attributes:
        slots: How many run at once.
    """

    slots: int

    def start(self, job: ScriptJob, slot: int) -> Any:
        """Starts a job and returns what stands for it."""

    def result(self, started: Any) -> ScriptResult | str | None:
        """Returns how it ended, or a sentence on why it was lost; None while it runs."""

    def stop(self) -> None:
        """Ends what runs."""


class LocalPool:
    """Starts scripts as processes of this machine.

    Args:
        workers: How many run at once.
        gpus: Those of the machine that are handed out; None leaves them alone.
        gpus_per_run: How many of them each run gets.
    """

    def __init__(self, workers: int, gpus: Sequence[str] | None = None, gpus_per_run: int = 0) -> None:
        self.slots = workers
        self._gpus, self._each = gpus, gpus_per_run
        self._running: list[Running] = []

    def start(self, job: ScriptJob, slot: int) -> Running:
        if self._gpus is not None:
            job = replace(job, gpus=tuple(self._gpus[slot * self._each : (slot + 1) * self._each]))
        self._running.append(Running(job))
        return self._running[-1]

    def result(self, started: Running) -> ScriptResult | None:
        result = started.result()
        if result is not None:
            self._running.remove(started)
        return result

    def stop(self) -> None:
        for running in self._running:
            running.kill()


@dataclass(frozen=True)
class Logged:
    """What a script logged in one epoch."""

    config: ScriptConfig
    number: float
    scores: Mapping[str, float]
    of: int | None = None


@dataclass
class ScriptScheduler:
    """Starts the script of each run, and writes the record of each that finishes.

    Attributes:
        pool: Where they run.
        folder: Where the records go.
        metrics: What the study compares.
        time_limit: Seconds after which a run is ended.
        threads: Number of threads of each run.
    """

    pool: Pool
    folder: StudyFolder
    metrics: tuple[str, ...]
    time_limit: float | None = None
    threads: int | None = None
    _files: imports.Sources = field(default_factory=dict)
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)  # cell and numbers: the seed that gave them

    def check(self, missing: Sequence[ScriptConfig], finished: Mapping[str, str] | None = None) -> None:
        """Checks that the program is there, before anything is started.

        Raises:
            UsageError: When it is not.
        """
        for config in missing[:1]:
            self._files = script_files(config.script)
            job = self._job(config)
            program = job.words()[0]
            if shutil.which(program, path=job.environment()["PATH"]) is None:
                raise UsageError(f"script: there is no program {program!r}; write it as you would start it here.")
        for record in self.folder.load_records(finished or ()):
            self._is_repetition(record)

    def run(self, missing: Sequence[ScriptConfig]) -> Iterator[Event]:
        """Runs the script for each run that is missing."""
        by_id = {config.run_id: config for config in missing}
        yield from self._left_by_others(by_id)
        waiting = deque(config for config in missing if not self.folder.has(config.run_id))
        slots: list[tuple[ScriptJob, Any] | None] = [None] * min(self.pool.slots, max(1, len(waiting)))
        read: dict[str, int] = {}
        try:
            while waiting or any(slots):
                for number, slot in enumerate(slots):
                    if slot is None and (config := self._next(waiting)):
                        if changed := self._changed(config):
                            raise UsageError(
                                f"{changed}, of {config.script}, changed while the study ran; the same command begins "
                                "anew with what it is now, and keeps what is finished."
                            )
                        job = self._job(config)
                        slots[number] = (job, self.pool.start(job, number))
                        yield Event(self._worker(number), (config,))
                    elif slot is not None:
                        job, started = slot
                        result = self.pool.result(started)
                        yield from self._progress(job, number, read)
                        if result is not None:
                            slots[number] = None
                            yield self._ended(job, result, self._worker(number))
                time.sleep(POLL_SECONDS)
        finally:
            self.pool.stop()

    def _changed(self, config: ScriptConfig) -> str:
        """Names the files of a script that are no longer those of the study; empty where all are."""
        if script_fingerprint(config.script) == config.source:
            return ""
        return ", ".join(changed_files(self._files, config.script)[:3]) or "a file"

    def _next(self, waiting: deque[ScriptConfig]) -> ScriptConfig | None:
        """Takes the next run that nobody has finished meanwhile."""
        while waiting:
            config = waiting.popleft()
            if not self.folder.has(config.run_id):
                return config
        return None

    def _worker(self, number: int) -> str:
        return f"worker {number + 1}"

    def _job(self, config: ScriptConfig) -> ScriptJob:
        return ScriptJob(config, self.metrics, self.folder.path.resolve(), self.time_limit, self.threads)

    def _progress(self, job: ScriptJob, number: int, read: dict[str, int]) -> Iterator[Event]:
        """Yields what a script has logged since the last look."""
        for log in self.folder.path.glob(f"attempts/{job.config.run_id}-*/log.jsonl"):
            with contextlib.suppress(OSError, ValueError):
                text = log.read_bytes()
                whole, start = text.rfind(b"\n") + 1, read.get(str(log), 0)  # a line may be half written
                read[str(log)] = whole
                found = [json.loads(line) for line in text[start:whole].splitlines()]
                epochs = [
                    Logged(job.config, entry["epoch"], {k: v for k, v in entry["metrics"].items() if v is not None})
                    for entry in found
                ]
                if epochs:
                    yield Event(self._worker(number), (job.config,), epochs)

    def _ended(self, job: ScriptJob, result: ScriptResult | str, worker: str) -> Event:
        """Writes the record of a script that ended, or says why there is none."""
        config = job.config
        record = None if isinstance(result, str) else self._record(config, result)
        why = "" if isinstance(record, Record) else self._why(job, result, record)
        if isinstance(record, Record) and not why and (changed := self._changed(config)):
            why = f"it was under way when {changed} changed, so that nobody knows which code it is of"
        if isinstance(record, Record) and not why:
            other = self._is_repetition(record)
            if other is not None:
                why = (
                    f"it gave exactly the numbers of seed {other}: the script sets a seed of its own; use "
                    "decaybench.run_seed() in it, or {seed} in its command line"
                )
        if not isinstance(result, str):
            shutil.rmtree(result.attempt, ignore_errors=True)
        if isinstance(record, Record) and not why:
            self.folder.write(record)
            trouble = None
            if not isinstance(result, str) and result.code:
                how = f"ended with {_exit(result.code)} after trial.finish; its record is kept."
                trouble = f"{config.name} (seed {config.seed}) {how}"
            return Event(worker, (config,), records=(record,), trouble=trouble, ended=True)
        trouble = (
            f"{config.name} {config.details} seed {config.seed} fails: {why}. Its output is in {_short(job.output)}."
        )
        return Event(worker, (config,), trouble=trouble, details=_tail(job.output), failed=config, ended=True)

    def _record(self, config: ScriptConfig, result: ScriptResult) -> Record | str | None:
        """Reads the record that a trial wrote; a sentence when it cannot be believed, None where there is none."""
        files = Files(result.attempt)
        if not files.outcome.is_file() or files.error.is_file():
            return None
        try:
            record = loads(files.outcome.read_bytes(), config.run_id)
        except (DamagedRecordError, OtherVersionError, OSError) as error:
            return str(error)
        return replace(record, provenance={**record.provenance, "seconds": round(result.seconds, 3)})

    def _why(self, job: ScriptJob, result: ScriptResult | str, record: str | None) -> str:
        """Says why a script gave no record."""
        if isinstance(result, str):
            return f"it was lost: {result}"
        files = Files(result.attempt)
        if result.code is None:
            return f"it took longer than {job.time_limit:g} s (--time-limit) and was ended"
        if files.error.is_file():
            return files.error.read_text("utf-8").rstrip(".")
        if record is not None:
            return f"it left a record that cannot be read: {record}"
        if result.code:
            last = _tail(job.output, 1).strip() if result.code > 0 else ""
            return _exit(result.code) + (f": {last.rstrip('.')}" if last else "")
        if not files.begun.is_file():
            return "it never called decaybench.trial, so that no strategy was applied"
        return "it never called trial.finish, so that there is no result"

    def _is_repetition(self, record: Record) -> int | None:
        """Returns the other seed of a cell that gave the same numbers from the same start; None where there is none."""
        if "script" not in record.config or record.diverged is not None:
            return None
        prints = (record.fingerprints.get("initial"), record.fingerprints.get("final"))
        numbers = json.dumps([prints, record.history, record.diverged], sort_keys=True)
        cell = json.dumps({k: v for k, v in record.config.items() if k != "seed"}, sort_keys=True)
        first = self._seen.setdefault((cell, numbers), record.seed)
        return None if first == record.seed else first

    def _left_by_others(self, missing: Mapping[str, ScriptConfig]) -> Iterator[Event]:
        """Takes over what scripts finished after their study was killed, and removes what nobody waits for."""
        for attempt in sorted(self.folder.path.glob("attempts/*-*")):
            try:
                fields = json.loads((attempt / "task.json").read_text("utf-8"))
                task = Task(**{**fields, "metrics": tuple(fields["metrics"])})
            except (OSError, ValueError, TypeError, KeyError):
                if time.time() - attempt.stat().st_mtime > STALE_SECONDS:  # another study may just be making it
                    shutil.rmtree(attempt, ignore_errors=True)
                continue
            if task.is_waited_for() and (task.pid, task.host) != (os.getpid(), platform.node()):
                continue
            config = missing.get(attempt.name.partition("-")[0])
            result = ScriptResult(attempt, 0, _seconds(attempt))
            record = self._record(config, result) if config is not None else None
            if config is not None and isinstance(record, Record) and not self.folder.has(config.run_id):
                yield self._ended(self._job(config), result, "here")
            shutil.rmtree(attempt, ignore_errors=True)


def _seconds(attempt: Path) -> float:
    """Returns the time from the start of an attempt to its record."""
    try:
        return max(0.0, Files(attempt).outcome.stat().st_mtime - (attempt / "task.json").stat().st_mtime)
    except OSError:
        return 0.0


def _exit(code: int) -> str:
    """Describes how a process ended."""
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _tail(path: Path, lines: int = LAST_LINES) -> str:
    """Returns the last lines of a file that are not empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


@dataclass(frozen=True)
class ScriptOptions:
    """Where and how scripts are to be started.

    Attributes:
        executor: A name of `decaybench.registry.EXECUTORS`, or ``auto``: this machine.
        workers: How many at once; ``auto`` is one, or as many as the GPUs allow.
        gpus_per_run: GPUs that each run sees; 0 leaves them as they are.
        time_limit: Seconds after which a run is ended.
        ray_address: Address of the Ray cluster.
        slurm: Options of Slurm by submitit's names, such as ``slurm_partition``.
        folder: The study folder, for what an executor writes itself.
    """

    executor: str = "auto"
    workers: str = "auto"
    gpus_per_run: int = 0
    time_limit: float | None = None
    ray_address: str = "auto"
    slurm: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()


def local_pool(options: ScriptOptions) -> LocalPool:
    """Starts scripts on this machine; see `decaybench.registry.EXECUTORS`.

    Raises:
        UsageError: When it has fewer GPUs than a run is to see.
    """
    each = options.gpus_per_run
    if not each:
        return LocalPool(1 if options.workers == "auto" else int(options.workers))
    gpus = _gpus()
    if len(gpus) < each:
        raise UsageError(f"--gpus-per-run {each}: this machine has {len(gpus)} GPUs.")
    most = len(gpus) // each
    return LocalPool(most if options.workers == "auto" else min(most, int(options.workers)), gpus, each)


def _gpus() -> list[str]:
    """Lists the GPUs of this machine that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def make_script_scheduler(folder: StudyFolder, options: ScriptOptions, metrics: Sequence[str]) -> ScriptScheduler:
    """Builds the scheduler of a study of a script.

    Raises:
        UsageError: When the executor is not there.
    """
    name = "processes" if options.executor == "auto" else options.executor
    if name == "inline":
        options = replace(options, workers="1")
    pool: Pool = imports.load(EXECUTORS[name].scripts)(replace(options, folder=folder.path))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // pool.slots) if isinstance(pool, LocalPool) and pool.slots > 1 else None
    return ScriptScheduler(pool, folder, tuple(metrics), options.time_limit, threads)
