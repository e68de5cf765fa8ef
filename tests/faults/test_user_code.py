"""Whatever a user's own code does becomes one sentence with her file and line, and never exit code 0."""

import json
from pathlib import Path

import pytest
from conftest import Cli
from typer.testing import CliRunner, Result

from decaybench.cli import app

EXITS = """
import os, sys, torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(2, 2), nn.PReLU())
def exits(*a, **k):
    sys.exit(0)
def exits_hard(*a, **k):
    os._exit(0)
def quits(*a, **k):
    raise SystemExit
def interrupts(*a, **k):
    raise KeyboardInterrupt
def breaks(*a, **k):
    raise ValueError("it breaks\\nin two lines")
def nothing(*a, **k):
    return None
class Forward(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(2))
    def forward(self, x):
        sys.exit(0)
class Names(nn.Linear):
    def no_weight_decay(self):
        os._exit(0)
def names():
    return Names(2, 2)
def chatty(*a, **k):
    print("hello from own code")
    return net()
"""
OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("quits", "interrupts", "nothing")]
KINDS = ["exits", "exits_hard", "breaks", *OTHERS]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(EXITS)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "own.py:KIND", "--recipe", "torch", "--fail-on", "activation"],
        ["audit", "own.py:net", "--optimizer", "own.py:KIND", "--fail-on", "activation"],
        ["run", "smoke", "--network", "own.py:KIND"],
        ["run", "smoke", "--activation", "own.py:KIND"],
        ["run", "smoke", "--dataset", "own.py:KIND"],
        ["run", "smoke", "--strategy", "own.py:KIND"],
        ["verify", "--target", "own.py:KIND", "--input", "2,2"],
    ],
    ids=lambda a: " ".join(a[:4]),
)
def test_own_code_that_ends_the_program_never_gives_exit_code_0(here: Path, arguments: list[str], kind: str) -> None:
    if kind == "interrupts" and arguments[0] == "run":
        kind = "exits"  # Ctrl-C in a run ends the process at once: tested with a process of its own below
    done = invoke(*(word.replace("KIND", kind) for word in arguments))
    assert done.exit_code != 0
    assert "Traceback" not in done.stderr
    assert "fault of decaybench" not in done.stderr
    assert done.stderr.strip()
    if kind in ("exits", "exits_hard", "quits", "breaks"):
        assert "own.py:" in done.stderr.splitlines()[-1]
        assert "in two lines" not in done.stderr


@pytest.mark.parametrize("target", ["own.py:Forward", "own.py:names"])
def test_nor_does_a_model_that_ends_it_when_it_is_run_or_asked(here: Path, target: str) -> None:
    done = invoke("audit", target, "--input", "2,2", "--recipe", "decaybench", "--fail-on", "activation")
    assert done.exit_code != 0
    assert "own.py:" in done.stderr


def test_a_module_that_ends_the_program_when_it_is_imported(here: Path) -> None:
    Path("ends.py").write_text("import sys\nx = 1\nsys.exit(0)\n")
    done = invoke("audit", "ends.py:x", "--recipe", "torch", "--fail-on", "activation")
    assert done.exit_code == 2
    assert "ends the program at ends.py:3 (sys.exit(0))" in done.stderr


def test_a_module_that_does_not_parse_is_named_with_its_line(here: Path) -> None:
    Path("bad.py").write_text("x = 1\ndef (:\n")
    done = invoke("audit", "bad.py:x")
    assert done.exit_code == 2
    assert "fails at bad.py:2: SyntaxError" in done.stderr


def test_what_own_code_prints_is_not_in_the_result(here: Path) -> None:
    done = invoke("audit", "own.py:chatty", "--format", "json")
    assert done.exit_code == 0
    json.loads(done.stdout)
    assert "hello from own code" in done.stderr


SLY = """
import atexit, os, sys, torch
from torch import nn

class Names(nn.Sequential):
    def named_modules(self, *a, **k):
        os._exit(0)
def named_modules(*a):
    return Names(nn.PReLU())
class State(nn.Sequential):
    def state_dict(self, *a, **k):
        os._exit(0)
def state_dict(shape, classes, activation):
    return State(nn.Flatten(), nn.Linear(64, classes))
class Text(Exception):
    def __str__(self):
        os._exit(0)
class Bad(Exception):
    def __str__(self):
        raise ValueError("no text")
def text(*a):
    raise Text
def bad_text(*a):
    raise Bad
def long_text(*a):
    raise ValueError("x" * 1_000_000)
def executes(*a):
    os.execv("/bin/true", ["true"])
class Exits:
    def __array__(self, *a, **k):
        os._exit(0)
def array():
    return Exits(), Exits(), Exits(), Exits()
class Zero(float):
    def __bool__(self):
        return False
    def __eq__(self, other):
        return True
    __hash__ = float.__hash__
def net():
    return nn.Sequential(nn.Linear(2, 2), nn.PReLU())
def zero(model):
    return torch.optim.SGD([{"params": list(model.parameters()), "weight_decay": Zero(0.1)}], lr=0.1)
def group(*a):
    raise BaseExceptionGroup("many", [ValueError("one")])
def at_exit(*a):
    atexit.register(lambda: os._exit(0))
    return net()
def replaced(*a):
    sys.exit = lambda *a: os._exit(0)
    return net()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "sly.py:named_modules"],
        ["audit", "sly.py:text"],
        ["audit", "sly.py:bad_text"],
        ["audit", "sly.py:long_text"],
        ["audit", "sly.py:executes"],
        ["audit", "sly.py:group"],
        ["audit", "sly.py:net", "--optimizer", "sly.py:zero"],
        ["run", "smoke", "--dataset", "sly.py:array"],
        ["run", "smoke", "--dataset", "synthetic", "--network", "sly.py:state_dict", "--executor", "inline"],
        ["run", "smoke", "--network", "sly.py:bad_text"],
        ["verify", "--target", "sly.py:named_modules", "--input", "2,2"],
    ],
    ids=lambda a: " ".join(a[:3]),
)
def test_nothing_of_own_code_ends_it_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sly.py").write_text(SLY)
    gate = ["--fail-on", "activation"] if arguments[0] == "audit" else []
    recipe = ["--recipe", "torch"] if gate and "--optimizer" not in arguments else []
    done = invoke(*arguments, *recipe, *gate)
    assert done.exit_code not in (0, None)
    assert "fault of decaybench" not in done.stderr
    assert 0 < len(done.stderr) < 5000
    if "--optimizer" not in arguments:
        assert "sly.py:" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["at_exit", "replaced"])
def test_what_own_code_leaves_behind_does_not_change_the_exit_code(tmp_path: Path, cli: Cli, kind: str) -> None:
    (tmp_path / "sly.py").write_text(SLY)
    done = cli("audit", f"sly.py:{kind}", "--recipe", "torch", "--fail-on", "activation")
    assert done.returncode == 1
    assert "torch decays 1" in done.stderr


@pytest.mark.slow
def test_a_run_that_own_code_interrupts_ends_as_with_ctrl_c(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "own.py").write_text(EXITS)
    done = cli("run", "smoke", "--network", "own.py:interrupts", "--executor", "inline")
    assert done.returncode == 130
    assert "Interrupted: 0 of 8 runs are finished" in done.stderr


CRASH = """
import torch
from torch import nn

class Act(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.calls = 0
        self.slope = nn.Parameter(torch.ones(channels))
    def forward(self, x):
        if self.training:
            self.calls += 1
        if self.calls > 5:
            raise ValueError("it breaks here")
        return x * self.slope.reshape(1, -1, *[1] * (x.ndim - 2))
"""


@pytest.mark.slow
def test_an_activation_that_fails_in_training_is_named_once_and_not_tried_again(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "crash.py").write_text(CRASH)
    study = ["run", "smoke", "--name", "k", "--strategy", "decay-all", "--executor", "inline"]
    done = cli(*study, "--activation", "crash.py:Act")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning")]
    assert len(warnings) == 2  # two seeds: the first in full, then how often it came again
    assert "epoch 2, step 1) fails at crash.py:14: ValueError: it breaks here. The traceback is in" in warnings[0]
    assert "the same 1 more times" in warnings[1]
    assert "No run was finished" in done.stderr
    assert done.stdout == ""
    (first, _) = sorted((tmp_path / "results/k/errors").iterdir())
    assert 'crash.py", line 14' in first.read_text()
    done = cli(*study, "--activation", "crash.py:Act", "--debug")
    assert "Traceback" in done.stderr
    done = cli(*study, "--activation", "crash.py:Act", "--activation", "prelu", "--fail-fast", "--name", "fast")
    assert done.returncode == 1
    assert "--fail-fast" in done.stderr
