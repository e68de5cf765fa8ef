"""Every executor gives the same bits; workers that die, hang or fail cost nothing but time."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decaybench.errors import DecaybenchError
from decaybench.execution.event import Event
from decaybench.execution.inline import Inline
from decaybench.execution.job import Executor
from decaybench.execution.processes import Processes, start_forkserver
from decaybench.execution.scheduler import Scheduler
from decaybench.results.packed import content_digest
from decaybench.results.store import StudyFolder
from decaybench.study.config import RunConfig
from decaybench.training.trainer import Training
from helpers import CPU, tiny


@pytest.fixture(scope="module", autouse=True)
def forkserver() -> None:
    start_forkserver()


def runs_of(**fields: Any) -> list[RunConfig]:
    return tiny(
        **{"activation": ["prelu", "kaf"], "seeds": 3, "strategy": ["decay-all", "exclude-alpha"], **fields}
    ).runs()


def do(executor: Executor, folder: StudyFolder, runs: list[RunConfig], every: float = 60.0) -> list[Event]:
    missing = [run for run in runs if not folder.has(run.run_id)]
    scheduler = Scheduler(executor, folder, CPU, workers=2, checkpoint_seconds=every, asked=runs)
    return list(scheduler.run(missing))


def numbers(folder: StudyFolder) -> dict[str, Any]:
    loaded = folder.load()
    assert not loaded.problems
    return {r.run_id: content_digest(replace(r, provenance={})) for r in loaded.records}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = StudyFolder(tmp_path_factory.mktemp("undisturbed"))
    do(Inline(CPU), folder, runs_of())
    return numbers(folder)


def test_processes_give_the_same_bits_as_inline(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    events = do(Processes(["cpu"], 2, 600.0), StudyFolder(tmp_path), runs_of())
    assert numbers(StudyFolder(tmp_path)) == undisturbed
    assert len(undisturbed) == 12
    assert {event.worker for event in events} == {"worker 1", "worker 2"}


@pytest.mark.slow
def test_so_does_one_run_at_a_time(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    for run in runs_of():
        do(Inline(CPU), StudyFolder(tmp_path), [run])
    assert numbers(StudyFolder(tmp_path)) == undisturbed


def children() -> list[int]:
    """The processes of workers: their parent is the forkserver, whose parent is this process."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        parents.setdefault(parent, []).append(pid)
    return [pid for server in parents.get(os.getpid(), []) for pid in parents.get(server, [])]


class Trouble:
    """Sends signals to random workers while it is entered."""

    def __init__(self, number: int, times: int, pause: float, seed: int = 0) -> None:
        self.sent, self._stop = 0, threading.Event()
        self._number, self._times, self._pause = number, times, pause
        self._generator = torch.Generator().manual_seed(seed)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while self.sent < self._times and not self._stop.wait(
            self._pause * float(torch.rand(1, generator=self._generator))
        ):
            if found := children():
                victim = found[int(torch.randint(len(found), (1,), generator=self._generator))]
                try:
                    os.kill(victim, self._number)
                except ProcessLookupError:
                    continue
                self.sent += 1

    def __enter__(self) -> "Trouble":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
def test_workers_killed_at_thirty_random_moments_change_nothing(tmp_path: Path) -> None:
    runs = runs_of(epochs=60, seeds=6)
    whole, folder = StudyFolder(tmp_path / "whole"), StudyFolder(tmp_path / "killed")
    do(Inline(CPU), whole, runs)
    with Trouble(signal.SIGKILL, 30, pause=0.8) as trouble:
        for _ in range(20):  # the same command again, should one run be lost three times
            events = do(Processes(["cpu"], 2, 600.0), folder, runs, every=0.1)
            if trouble.sent == 30 and len(numbers(folder)) == len(runs):
                break
            for path in list(folder.runs.glob("*.json"))[::2] if trouble.sent < 30 else []:
                path.unlink()
    assert trouble.sent == 30
    do(Processes(["cpu"], 2, 600.0), folder, runs)
    assert numbers(folder) == numbers(whole)
    assert not folder.checkpoints()
    assert events


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed_and_its_job_done_again(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with Trouble(signal.SIGSTOP, 1, pause=0.2) as trouble:
        events = do(Processes(["cpu"], 2, patience=6.0), StudyFolder(tmp_path), runs_of())
    assert trouble.sent == 1
    assert [e.trouble for e in events if e.trouble and "sent no message for 6 s" in e.trouble]
    assert numbers(StudyFolder(tmp_path)) == undisturbed


FAILS = """
from torch import nn

class Fails(nn.Module):
    def forward(self, x):
        if self.training:
            raise ValueError("it cannot go on")
        return x

def make(channels):
    return Fails()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [False, True])
def test_a_run_whose_own_code_fails_is_given_up_at_once_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails.py").write_text(FAILS)
    runs = runs_of(activation=["fails.py:make", "prelu"], seeds=1)
    folder = StudyFolder(tmp_path / "study")
    events = do(Processes(["cpu"], 2, 600.0) if processes else Inline(CPU), folder, runs)
    failed = [event for event in events if event.failed is not None]
    assert {event.failed.run_id for event in failed if event.failed} == {runs[0].run_id, runs[1].run_id}
    assert "fails at fails.py:7: ValueError: it cannot go on. The traceback is in" in (failed[0].trouble or "")
    assert numbers(folder).keys() == {run.run_id for run in runs[2:]}


def test_what_does_not_fit_the_memory_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    real, sizes = Training.advance, []

    def advance(self: Training) -> Any:
        sizes.append(len(self.runs))
        if len(self.runs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(Training, "advance", advance)
    events = do(Inline(CPU), StudyFolder(tmp_path), runs_of())
    assert numbers(StudyFolder(tmp_path)) == undisturbed
    assert max(sizes) > 2
    assert any("in two halves" in (event.trouble or "") for event in events)
    assert not any(event.failed for event in events)


@pytest.mark.slow
def test_a_worker_whose_gpu_takes_no_more_work_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = 'import torch\n\nERROR = torch.AcceleratorError("CUDA error: unspecified launch failure")\n'
    (tmp_path / "fails.py").write_text(error + FAILS.replace('ValueError("it cannot go on")', "ERROR"))
    runs = runs_of(activation=["fails.py:make", "prelu"], seeds=1)
    folder = StudyFolder(tmp_path / "study")
    events = do(Processes(["cpu"], 1, 600.0), folder, runs)
    troubles = [event.trouble for event in events if event.trouble]
    assert "worker 1 was lost: " in troubles[0]
    assert "CUDA error: unspecified launch failure" in troubles[0]
    assert len({event.failed.run_id for event in events if event.failed}) == 2
    assert numbers(folder).keys() == {run.run_id for run in runs[2:]}  # done by others that took its place


def test_a_gpu_that_takes_no_more_work_ends_a_study_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    real, calls = Training._step, []

    def step(self: Training, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        real(self, *args)

    monkeypatch.setattr(Training, "_step", step)
    events = []
    with pytest.raises(DecaybenchError, match=r"illegal memory access.*Run the same command again"):
        for event in Scheduler(Inline(CPU), StudyFolder(tmp_path), CPU, checkpoint_seconds=0.0).run(runs_of()):
            events.append(event)
    assert len(calls) == 8
    assert not any(event.trouble for event in events)
    assert StudyFolder(tmp_path).checkpoints()
    do(Inline(CPU), StudyFolder(tmp_path), runs_of())
    assert numbers(StudyFolder(tmp_path)) == undisturbed


def test_a_stopped_study_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    runs = runs_of(epochs=6, activation="prelu")
    whole, folder = StudyFolder(tmp_path / "whole"), StudyFolder(tmp_path / "stopped")
    do(Inline(CPU), whole, runs)
    stopped = Scheduler(Inline(CPU), folder, CPU, checkpoint_seconds=0.0).run(runs)
    for event in stopped:
        if event.epochs and event.epochs[-1].number == 4:
            break
    stopped.close()  # type: ignore[attr-defined]
    assert len(folder.checkpoints()) == 1
    events = do(Inline(CPU), folder, runs)
    assert min(epoch.number for event in events for epoch in event.epochs) > 3  # the first ones were not done again
    assert numbers(folder) == numbers(whole)
    assert not folder.checkpoints()


def test_a_damaged_checkpoint_costs_only_its_own_runs(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    runs, folder = runs_of(), StudyFolder(tmp_path)
    going = Scheduler(Inline(CPU), folder, CPU, checkpoint_seconds=0.0).run(runs)
    for event in going:
        if event.epochs:
            break
    going.close()  # type: ignore[attr-defined]
    (path,) = (tmp_path / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    do(Inline(CPU), folder, runs)
    assert numbers(folder) == undisturbed
    assert not folder.checkpoints()


@pytest.mark.slow
def test_runs_that_another_process_finished_meanwhile_are_not_done_again(tmp_path: Path) -> None:
    runs = runs_of()
    ours, theirs = StudyFolder(tmp_path / "ours"), StudyFolder(tmp_path / "theirs")
    do(Inline(CPU), theirs, runs)
    records = theirs.load().records
    done: list[str] = []
    for event in Scheduler(Inline(CPU), ours, CPU).run(runs):
        done += [record.run_id for record in event.records]
        for record in records:
            ours.write(record)
    assert 0 < len(done) < len(runs)
    assert len(done) == len(set(done))


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 1e5 * next(jumps))
    do(Inline(CPU), StudyFolder(tmp_path), runs_of(), every=0.05)
    assert numbers(StudyFolder(tmp_path)) == undisturbed
