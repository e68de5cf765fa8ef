"""``decaybench status``, precision on demand and the executors from the command line."""

import io
import json
import os
import platform
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from decaybench.cli import app
from decaybench.cli.live import Live
from decaybench.execution.progress import Progress, loads
from decaybench.results.store import StudyFolder
from decaybench.training.trainer import Epoch
from helpers import one

TINY = [
    "run",
    "--dataset",
    "synthetic,samples=200",
    "--network",
    "mlp,width=16",
    "--epochs",
    "2",
    "--executor",
    "inline",
    "--weight-decay",
    "0.002",
]
TINY += ["--activation", "prelu", "--strategy", "decay-all", "--strategy", "exclude-alpha", "--name", "t"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_status_of_a_study_that_is_complete_left_or_running() -> None:
    assert call(*TINY, "--seeds", "2")[0] == 0
    code, out, _ = call("status")
    assert (code, out) == (0, "results/t: complete, 4 of 4 runs are finished\n")
    next(Path("results/t/runs").glob("*.json")).unlink()
    code, out, _ = call("status", "results/t", "--cells")
    noted = loads(Path("results/t/progress.json").read_text())
    assert noted.pid == os.getpid()  # this process, which still is there
    assert out.startswith("results/t: running, 3 of 4 runs are finished\nt: 4 of 4 runs (2 cells)")
    assert "1/2 synthetic,samples=200 mlp,width=16 prelu" in out
    Path("results/t/progress.json").write_text(Progress("t", 2, 4, 0, pid=2**22 + 1).dumps())
    assert "left, 3 of 4 runs" in call("status")[1]
    assert "Go on with: decaybench run results/t/study.toml" in call("status")[1]


def test_status_where_there_is_nothing() -> None:
    assert "There is no study below results/" in call("status")[2]
    Path("results/x").mkdir(parents=True)
    code, _, errors = call("status", "results/x")
    assert code == 2
    assert "no study that was begun" in errors


def test_progress_counts_epochs_and_says_what_workers_do() -> None:
    from decaybench.execution.event import Event

    progress = Progress("s", 1, 4, before=2)
    scores = {"train_loss": 0.5, "validation_loss": 0.5, "test_loss": 0.5, "validation_accuracy": 0.9}
    config = one(epochs=4)
    progress.on(Event("worker 1", (config,), (Epoch(config, 2, scores),)))
    assert progress.share == pytest.approx(0.25)  # half of one of two missing runs
    assert progress.lines()[-1] == (
        "worker 1: synthetic,samples=200 mlp,width=16 prelu exclude-alpha: epoch 2/4, "
        "train loss 0.5, validation loss 0.5, validation accuracy 90.0%"
    )
    assert loads(progress.dumps()).workers == progress.workers
    assert json.loads(progress.dumps())["host"] == platform.node()
    progress.on(Event("worker 1", (config,), ended=True))
    assert not progress.workers


def test_seeds_are_added_until_differences_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = [*TINY, "--seeds", "30", "--until", "20", "--weight-decay", "1"]
    code, out, errors = call(*noisy)
    assert code == 0, errors
    finished = len(StudyFolder(Path("results/t")).load().records)
    assert 10 <= finished < 60
    assert "anytime-valid" in out
    _, again, errors = call(*noisy)
    assert again == out  # nothing left to do
    assert "not finished" not in call("report")[2]
    Path("results/t/progress.json").unlink()  # it names this process, which still runs
    assert f"complete, {finished} of 120 runs are finished" in call("status")[1]
    assert "until = 20.0" in Path("results/t/study.toml").read_text()


def test_until_needs_what_differences_are_to() -> None:
    code, _, errors = call(*TINY[:-6], "--strategy", "exclude-alpha", "--until", "0.5")
    assert code == 2
    assert "decay-all, which is not among this study's strategies" in errors


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1.5"])
def test_workers_are_a_number_or_auto(workers: str) -> None:
    code, _, errors = call(*TINY, "--workers", workers)
    assert code == 2
    assert "allowed are auto and whole numbers from 1 on" in errors


FAILS = """
from torch import nn
class Fails(nn.Module):
    def forward(self, x):
        if self.training:
            raise ValueError("no further")
        return x
def make(channels):
    return Fails()
"""


def test_a_study_with_a_run_that_fails_ends_with_exit_code_1_and_its_table() -> None:
    Path("fails.py").write_text(FAILS)
    code, out, errors = call(*TINY, "--activation", "fails.py:make", "--seeds", "1")
    assert code == 1
    assert "no further. The traceback is in results/t/errors/" in errors
    assert "Traceback" not in errors
    assert "prelu" in out
    assert len(StudyFolder(Path("results/t")).load().records) == 2


@pytest.mark.slow
def test_pictures_and_pages_are_written(tmp_path: Path) -> None:
    assert call(*TINY, "--seeds", "3", "--weight-decay", "0.1", "--weight-decay", "0.2")[0] == 0
    for format in ("html", "png", "svg", "pdf"):
        assert call("report", "--format", format, "--output", f"r.{format}")[0] == 0
        assert Path(f"r.{format}").stat().st_size > 5000
    assert "add --output report.html" in call("report", "--format", "html")[2]
    assert (
        "Unknown value of --figure 'alpha': did you mean 'alphas'?"
        in call("report", "--format", "png", "--output", "x.png", "--figure", "alpha")[2]
    )
    code, out, _ = call("report", "--format", "latex")
    assert code == 0
    assert "\\begin{tabular}{" in out
    assert out.count(r" \\") == 7  # the head and six cells
    assert "accuracy \\%" in out


def test_a_report_follows_a_study_until_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(*TINY, "--seeds", "2")[0] == 0
    late = next(Path("results/t/runs").glob("*.json"))
    content = late.read_text()
    late.unlink()
    monkeypatch.setattr("time.sleep", lambda _: late.write_text(content))  # the last run is finished meanwhile
    code, out, errors = call("report", "results/t", "--follow", "--format", "csv")
    assert code == 0
    assert "1 of the study's 4 runs are not finished" in errors
    first, second = out.strip().split("\ndataset,", 1)
    assert first != f"dataset,{second}"


def test_a_terminal_shows_a_bar_and_below_it_how_far_the_study_is() -> None:
    progress = Progress("a-study", 3, 120, 20, finished=30, seconds=60.0, share=0.3)
    progress.best, progress.worst = (0.97, "kaf exclude-alpha " * 9), (0.41, "prelu decay-all " * 9)
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(Live(progress, StudyFolder(Path("nowhere"))).picture())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert set(lines[0]) <= set("━╸╺ ")
    assert len(lines[0]) == 80
    assert lines[1].rstrip() == "a-study: 50 of 120 runs (3 cells) · 30 runs/min · 2 min 20 s left"
    assert lines[2].startswith("best validation accuracy 97.0%: kaf")
    assert lines[3].startswith("worst validation accuracy 41.0%: prelu")
    assert all(len(line) == 80 for line in lines[2:4])
    assert {line.rstrip()[-1] for line in lines[2:4]} == {"…"}


@pytest.mark.parametrize(
    ("share", "seconds", "left"),
    [(0.0, 60, "…"), (0.01, 5.0, "…"), (0.5, 61.0, "1 min 0 s"), (0.2, 301.0, "20 min 0 s"), (1.0, 9.0, "0 s")],
)
def test_the_time_that_is_left_settles(share: float, seconds: float, left: str) -> None:
    shown = Progress("s", 1, 10, 0, finished=1, seconds=seconds, share=share).rate
    assert shown.removesuffix(" left").endswith(left)
