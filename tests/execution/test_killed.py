"""A study that is killed or interrupted loses nothing that was finished and ends with the same numbers."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Cli
from test_scheduler import do, runs_of
from test_scheduler import numbers as finished

from decaybench.execution.inline import Inline
from decaybench.execution.processes import start_forkserver
from decaybench.results.store import StudyFolder
from helpers import CPU, REPOSITORY

pytestmark = pytest.mark.slow

# Each run takes long enough that the signal comes before the next line does.
SMALL = ["run", "--dataset", "synthetic,samples=800", "--network", "mlp", "--name", "k", "--weight-decay", "0.002"]
SMALL += ["--activation", "prelu", "--strategy", "decay-all", "--epochs", "12"]
STUDY = [*SMALL, "--activation", "kaf", "--strategy", "exclude-alpha", "--seeds", "2"]


def start(folder: Path, arguments: list[str] = STUDY) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "decaybench", *arguments, "--verbose"]  # a line for each run
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Where the tests run in the background of a script, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    """Reads stderr up to the line that holds a text."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}")


def numbers(folder: Path) -> dict[str, dict]:
    """All records, without provenance."""
    records = {}
    for path in (folder / "results/k/runs").glob("*.json"):
        records[path.name] = json.loads(path.read_text())
        del records[path.name]["provenance"], records[path.name]["digest"]  # of everything, times included
    return records


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(numbers(folder)) == 8
    return numbers(folder)


@pytest.mark.parametrize("point", ["Starting", "[1/8]", "[3/8]", "[6/8]"])
def test_killed_in_the_middle_and_finished_by_the_same_command(
    point: str, cli: Cli, tmp_path: Path, undisturbed: dict
) -> None:
    process = start(tmp_path)
    wait_for(process, point)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    kept = numbers(tmp_path)
    assert kept.items() <= undisturbed.items()
    assert len(kept) >= int(point[1]) if point[0] == "[" else True
    done = cli(*STUDY)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path) == undisturbed


def test_ctrl_c_ends_within_two_seconds_keeps_what_is_finished_and_says_how_to_go_on(
    tmp_path: Path, undisturbed: dict
) -> None:
    process = start(tmp_path, [*SMALL, "--seeds", "1", "--epochs", "100000"])  # a short run, then an endless one
    wait_for(process, "[1/2]")
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - sent < 2
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "Error" not in stderr
    assert "1 of 2 runs are finished and kept in results/k." in stderr
    assert "Go on with: decaybench run --dataset synthetic,samples=800" in stderr
    kept = numbers(tmp_path)
    assert len(kept) == 1
    assert kept.items() <= undisturbed.items()


def test_two_at_once_on_one_folder_do_no_harm(tmp_path: Path, undisturbed: dict) -> None:
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert numbers(tmp_path) == undisturbed


LONG = """
import torch
from torch import nn

class Long(nn.Linear):
    def forward(self, x):
        if self.training:
            torch.linalg.eigvals(torch.randn(6000, 6000))  # one operation that takes minutes
        return super().forward(x.flatten(1))

def net(shape, classes, activation):
    return Long(shape[0] * shape[1] * shape[2], classes)
"""


def test_ctrl_c_does_not_wait_for_a_long_operation(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(LONG)
    arguments = [*SMALL, "--network", "long.py:net", "--seeds", "1"]
    process = start(tmp_path, arguments)
    wait_for(process, "Starting")
    started = time.monotonic()
    while not (tmp_path / "results/k/study.toml").exists():  # then the first run begins
        assert time.monotonic() - started < 60
        process.poll()
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 2
    assert process.returncode == 130
    assert "Go on with: decaybench run" in errors
    assert "Error" not in errors


FULL = """
mkdir results there
mount -t tmpfs -o size=96k tmpfs results
"$@" > there/first.out 2> there/first.err; echo $? > there/first.code
mount -o remount,size=16m tmpfs results
"$@" > there/second.out 2> there/second.err; echo $? > there/second.code
cp -r results/k there/k
"""


def test_a_disk_that_is_full_loses_nothing_and_says_what_to_do(tmp_path: Path, undisturbed: dict) -> None:
    """A real one: a tmpfs of 96 KiB, in a mount namespace of its own."""
    (tmp_path / "full.sh").write_text(FULL)
    command = ["unshare", "-rm", "sh", "full.sh", sys.executable, "-m", "decaybench", *STUDY]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    there = tmp_path / "there"
    assert done.returncode == 0, done.stderr
    assert (there / "first.code").read_text() == "1\n"
    errors = (there / "first.err").read_text()
    assert "No space left on device; make room or name another folder with --results" in errors
    assert "Traceback" not in errors
    assert (there / "second.code").read_text() == "0\n"
    (there / "results").mkdir()
    (there / "k").rename(there / "results/k")
    assert numbers(there) == undisturbed


def test_a_terminated_study_goes_on(cli: Cli, tmp_path: Path, undisturbed: dict) -> None:
    process = start(tmp_path)
    wait_for(process, "[1/8]")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert numbers(tmp_path).items() <= undisturbed.items()
    assert cli(*STUDY).returncode == 0
    assert numbers(tmp_path) == undisturbed


def drive(path: str, runs: list) -> None:
    """A driver in a process of its own."""
    do(Inline(CPU), StudyFolder(Path(path)), runs, every=0.05)


def test_a_driver_killed_at_thirty_random_moments_changes_nothing(tmp_path: Path) -> None:
    """Study after study, until thirty drivers were killed while they had something to do."""
    runs, generator, killed, midway = runs_of(epochs=60), torch.Generator().manual_seed(0), 0, 0
    whole = StudyFolder(tmp_path / "whole")
    do(Inline(CPU), whole, runs)
    start_forkserver()
    context = multiprocessing.get_context("forkserver")
    for number in range(200):  # on a fast machine some studies end before they are killed
        folder = StudyFolder(tmp_path / str(number))
        while True:
            process = context.Process(target=drive, args=(str(folder.path), runs))
            process.start()
            process.join(timeout=1.2 + 2.0 * float(torch.rand(1, generator=generator)) if killed < 30 else 120)
            if not process.is_alive():
                break
            process.kill()
            process.join()
            killed += 1
            midway += bool(folder.checkpoints())
            assert finished(folder).items() <= finished(whole).items()
        assert process.exitcode == 0
        assert finished(folder) == finished(whole)
        assert not folder.checkpoints()
        if killed == 30:
            break
    assert killed == 30
    assert midway >= 10
