"""Hostile input: one sentence, the right exit code, and nothing executed that nobody asked for."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from decaybench.analysis.comparison import ComparisonSettings
from decaybench.cli import app
from decaybench.datasets.arrays import checked
from decaybench.errors import UsageError, one_line, printable
from decaybench.execution.inline import Inline
from decaybench.execution.scheduler import Scheduler
from decaybench.report.html import to_html
from decaybench.report.numbers import csv_table
from decaybench.results.store import StudyFolder
from helpers import CPU, REPOSITORY, tiny
from made_records import made, summary_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("target", ["evilpkg.mod:x", "evilpkg.sub.mod:x", "evil.py:x"])
@pytest.mark.parametrize("command", ["report", "status", "pack"])
def test_reading_a_study_executes_nothing(here: Path, target: str, command: str) -> None:
    for name in ("evilpkg/__init__.py", "evilpkg/mod.py", "evilpkg/sub/__init__.py", "evilpkg/sub/mod.py", "evil.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"open({str(here / 'executed')!r}, 'w')\n")
    folder = StudyFolder(here / "results" / "k")
    folder.write(made(0.5))
    folder.write_study(f'dataset = "{target}"\nnetwork = "mlp"\n')
    for _ in range(2):
        invoke(command, "results/k")
    assert not Path("executed").exists()


def test_data_in_any_order_of_bytes_and_strides_are_trained_on(here: Path) -> None:
    Path("data.py").write_text(
        "import numpy as np\n"
        "def odd():\n"
        "    rng = np.random.default_rng(0)\n"
        "    x = rng.normal(size=(200, 1, 4, 4))\n"
        "    y = (x.sum((1, 2, 3)) > 0).astype('>i8')\n"
        "    return x[::-1].astype('>f4')[50:], y[::-1][50:], x[::-1][:50], y[::-1][:50]\n"
    )
    folder = StudyFolder(here / "study")
    runs = tiny(dataset="data.py:odd", activation="prelu", strategy="decay-all", epochs=1).runs()
    list(Scheduler(Inline(CPU), folder, CPU).run(runs))
    assert len(folder.load()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_x": np.zeros((4, 0, 3, 3))}, "holds no numbers"),
        ({"train_x": np.full((4, 1, 3, 3), 1e300)}, "infinite in float32"),
        ({"train_y": np.array([0, 1, 2, 10**9])}, "allowed are 0"),
        ({"train_x": np.zeros((4, 1, 3, 3), complex)}, "not real numbers"),
        ({"train_x": np.array([["a"]])}, "shape"),
    ],
    ids=str,
)
def test_data_that_nothing_can_be_learned_from_are_refused(change: dict[str, Any], message: str) -> None:
    whole = {"train_x": np.zeros((4, 1, 3, 3)), "train_y": np.arange(4) % 2}
    whole |= {"test_x": np.zeros((2, 1, 3, 3)), "test_y": np.arange(2)} | change
    with pytest.raises(UsageError, match=message):
        checked(tuple(whole.values()), "my:data")


OWN = """
import torch
from torch import nn
from decaybench import Plan

class Empty(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(0))
    def forward(self, x):
        return x

def no_optimizer(setup):
    return Plan(["sgd"])
def no_list(setup):
    return Plan(setup.optimizer(setup.group("all")))
def no_function(setup):
    return Plan([setup.optimizer(setup.group("all"))], penalty=3)
def no_tensor(shape, classes, activation):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()
"""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--activation=own.py:Empty", "has an empty parameter: slope"),
        ("--strategy=own.py:no_optimizer", "must be a list of torch optimizers"),
        ("--strategy=own.py:no_list", "must be a list of torch optimizers"),
        ("--strategy=own.py:no_function", "penalty must be a function or None"),
        ("--network=own.py:no_tensor", "gives tuple for two inputs"),
        ("--activation=own.py:Empty,x=nan", "a number must be finite"),
        ("--activation=own.py:Empty,x=inf", "a number must be finite"),
    ],
)
def test_own_parts_that_cannot_work_are_one_sentence(here: Path, option: str, message: str) -> None:
    Path("own.py").write_text(OWN)
    done = invoke("run", "smoke", option)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "fault of decaybench" not in done.stderr


ESCAPES = "\x1b[31mred\x07\x1b]0;title\x07 \u202egnp.exe"


def test_nothing_controls_the_terminal() -> None:
    assert printable(ESCAPES) == "\\x1b[31mred\\x07\\x1b]0;title\\x07 \\u202egnp.exe"
    assert printable("a\tb\nλ − ×") == "a\tb\nλ − ×"
    assert printable("\u061c\u2028\ufeff\ud800") == "\\u061c\\u2028\\ufeff\\ud800"
    assert one_line("layer\nTotal: 0") == "layer\\nTotal: 0"


def test_names_from_anywhere_are_shown_with_their_escapes(here: Path) -> None:
    code = (
        "from torch import nn\n"
        f"def net():\n    m = nn.Module()\n"
        f"    m.register_module({ESCAPES.replace('.', '_')!r}, nn.PReLU())\n    return m\n"
        f"def fails():\n    raise ValueError({ESCAPES!r})\n"
    )
    Path("own.py").write_text(code)
    for arguments in (["audit", "own.py:net"], ["audit", "own.py:net", "--format", "csv"], ["audit", "own.py:fails"]):
        done = invoke(*arguments)
        assert "\x1b" not in done.output
        assert "\\x1b[31m" in done.output


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    text = csv_table([{"name": "=1+1", "b": "-5", "c": -5.0, "d": "+x", "e": "@x", "f": "a=1", "g": "\x1b"}])
    assert text.splitlines()[1] == "'=1+1,'-5,-5.0,'+x,'@x,a=1,\\x1b"


def test_the_page_may_load_nothing_and_run_its_own_script_only() -> None:
    page = to_html(summary_of([made(0.5)]), ComparisonSettings(), "x", "", "run")
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page
    assert "script-src 'sha256-" in page


@pytest.mark.parametrize(
    "content",
    [
        "lr = ["
        + ", ".join(str(0.001 * k) for k in range(1, 1001))
        + "]\nweight_decay = ["
        + ", ".join(str(0.001 * k) for k in range(1, 1001))
        + "]\nseeds = 1000\n",
        "activation = { name = 'kaf', D = ["
        + ", ".join(map(str, range(2, 250)))
        + "], boundary = ["
        + ", ".join(str(k) for k in range(1, 200))
        + "] }\n",
    ],
)
def test_a_grid_without_end_is_refused_at_once(here: Path, content: str) -> None:
    Path("s.toml").write_text(content)
    done = invoke("run", "s.toml", "--dry-run")
    assert done.exit_code == 2
    assert "at most" in done.stderr or "more than" in done.stderr


def test_pipes_where_files_should_be_do_not_hang(here: Path) -> None:
    folder = StudyFolder(here / "results" / "k")
    folder.write(made(0.5, fingerprints={"data": "0" * 16, "initial": "1" * 16, "batches": "2" * 16}))
    folder.write_study('network = "mlp"\n')
    os.mkfifo(folder.runs / "0123456789abcdef.json")
    os.mkfifo(folder.progress_file)
    (folder.path / "checkpoints").mkdir()
    os.mkfifo(folder.path / "checkpoints" / "x.pt")
    assert "no ordinary file" in folder.load().problems[0]
    done = invoke("report", "results/k", "--format", "json")
    assert done.exit_code == 0, done.output
    assert invoke("status", "results/k").exit_code == 0
    assert folder.checkpoints() == {}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "{}",
        '{"study": 3}',
        "null",
        '{"pid": "x"}',
        "\x00",
        json.dumps(
            {"study": "k", "cells": 1, "total": 1, "before": 0, "best": [1], "workers": 3, "pid": 10**30, "host": None}
        ),
    ],
)
def test_odd_progress_is_passed_over(here: Path, content: str) -> None:
    folder = StudyFolder(here / "results" / "k")
    folder.write_study('network = "mlp"\n')
    folder.progress_file.write_text(content)
    done = invoke("status", "results/k")
    assert done.exit_code == 0, done.stderr
    assert "of" in done.stdout


def test_committed_studies_are_read_without_writing() -> None:
    before = {p: p.stat().st_mtime_ns for p in (REPOSITORY / "results").rglob("*")}
    assert invoke("report", str(REPOSITORY / "results" / "first-look")).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in (REPOSITORY / "results").rglob("*")} == before
