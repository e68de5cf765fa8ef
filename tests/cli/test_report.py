"""The command ``report`` on folders as people leave them."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli
from typer.testing import CliRunner, Result

import decaybench
from decaybench.analysis.statistics import over_seeds
from decaybench.cli import app
from helpers import REPOSITORY

TINY = [
    "--executor",
    "inline",
    "--dataset",
    "synthetic,samples=200",
    "--network",
    "mlp,width=8",
    "--activation",
    "prelu",
    "--epochs",
    "1",
]
GENTLE = """
from decaybench import Plan

def gentle(setup, share: float = 0.1):
    return Plan([setup.optimizer(setup.group("all"), weight_decay=share * setup.decay)])

def broken(setup):
    def term():
        raise ValueError("it breaks here")

    return Plan([setup.optimizer(setup.group("all"))], penalty=term)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(GENTLE)
    return tmp_path


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run(*options: str) -> None:
    done = cli("run", *TINY, "--name", "s", *options)
    assert "Traceback" not in done.stderr
    assert Path("results/s/study.toml").exists(), done.stderr


@pytest.mark.slow
def test_what_a_study_says_holds_when_the_code_that_it_names_has_moved(here: Path, cli: Cli) -> None:
    strategies = ["--strategy", "decay-all", "--strategy", "exclude-alpha", "--strategy", "my.py:gentle"]
    run(*strategies, "--seeds", "6", "--until", "50", "--primary", "exclude-alpha", "--weight-decay", "0.1")
    before = json.loads(cli("report", "results/s", "--format", "json").stdout)
    (here / "my.py").rename(here / "gone.py")
    after = cli("report", "results/s", "--format", "json")
    assert json.loads(after.stdout) == before
    printed = cli("report", "results/s")
    assert "anytime-valid" in printed.stdout
    assert "study.toml cannot be used, so every run in the folder is shown" in printed.stdout


def test_a_strategy_of_ones_own_is_named_as_one_typed_it(here: Path) -> None:
    run("--strategy", "decay-all", "--strategy", "my.py:gentle,share=0.5", "--seeds", "3", "--weight-decay", "0.1")
    for name in ("my.py:gentle", "my.py:gentle,share=0.5"):
        printed = cli("report", "results/s", "--baseline", name).stdout
        assert f"from {name} in" in printed
        assert "no run has the strategy" not in printed
    printed = cli("report", "results/s", "--primary", "my.py:gentle,share=0.5:loss").stdout
    assert "nothing is the contrast" not in printed
    assert "The contrast my.py:gentle,share=0.5:loss was named before" in " ".join(printed.split())


def test_a_strategy_of_which_nothing_finished_is_named(here: Path) -> None:
    run("--strategy", "decay-all", "--strategy", "my.py:broken", "--seeds", "2", "--weight-decay", "0.1")
    assert "No run of my.py:broken is." in cli("report", "results/s").stderr


def test_one_seed_promises_nothing(here: Path) -> None:
    run("--strategy", "decay-all", "--seeds", "1", "--weight-decay", "0.1", "--weight-decay", "0.2")
    printed = cli("report", "results/s").stdout
    assert "One seed gives no interval and no verdict" in printed
    assert "hold over new" not in printed
    assert "bootstrap" not in printed


@pytest.mark.slow
def test_a_plan_speaks_about_what_the_report_speaks_about(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "results" / "first-look", tmp_path / "f")
    folder = str(tmp_path / "f")
    assert "test examples with these seeds" in cli("report", folder, "--plan", "0.1").stdout
    fixed = cli("report", folder, "--plan", "0.1", "--fixed-test-set").stdout
    assert "on these test examples: " in fixed
    assert "test examples are too few" not in fixed
    assert "over new seeds and new test examples" not in fixed  # each method at its own best, too
    refused = cli("report", folder, "--plan", "0.1", "--format", "csv")
    assert refused.exit_code == 2
    assert "--plan is shown by --format table and html" in refused.stderr
    page = tmp_path / "p.html"
    cli("report", folder, "--plan", "0.1", "--format", "html", "--output", str(page))
    assert "test examples with these seeds" in page.read_text("utf-8")


def test_intervals_on_these_test_images_are_students() -> None:
    folder = str(REPOSITORY / "results" / "first-look")
    frame = decaybench.load(folder)
    kaf = frame[(frame.activation == "kaf") & (frame.weight_decay == 0.1)].set_index("seed")
    pair = [kaf[kaf.strategy == name].test_accuracy for name in ("exclude-alpha", "decay-all")]
    expected = over_seeds(list(pair[0] - pair[1]))
    assert expected is not None
    rows = json.loads(cli("report", folder, "--fixed-test-set", "--format", "json").stdout)
    row = next(r for r in rows if (r["activation"], r["strategy"], r["weight_decay"]) == ("kaf", "exclude-alpha", 0.1))
    assert (row["test_accuracy_seeds_low"], row["test_accuracy_seeds_high"]) == pytest.approx(expected.interval())
    assert row["test_accuracy_difference_low"] <= row["test_accuracy_seeds_low"]  # corrected


OWN_SLOPE = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc, self.slope = nn.LazyLinear(8), nn.Parameter(torch.full((8,), 0.25))
        self.out = nn.Linear(8, classes)

    def forward(self, x):
        return self.out(F.prelu(self.fc(x.flatten(1)), self.slope))

def net(shape, classes, activation):
    model = Net(classes)
    model(torch.zeros(1, *shape))
    return model
"""


def test_a_network_that_owns_a_slope_is_compared_as_one_that_learns_an_activation(here: Path) -> None:
    """The slope is a parameter of a block, and the activation of the study learns nothing."""
    (here / "blk.py").write_text(OWN_SLOPE)
    options = ["--dataset", "synthetic,samples=200", "--network", "blk.py:net", "--activation", "relu", "--seeds", "3"]
    options += ["--weight-decay", "2", "--epochs", "4", "--executor", "inline", "--name", "s"]
    for name in ("decay-all", "exclude-alpha", "alpha-only"):
        options += ["--strategy", name]
    done = cli("run", *options)
    assert done.exit_code == 0, done.output
    printed = json.loads(cli("report", "results/s", "--format", "json").stdout)
    rows = {row["strategy"]: row for row in printed}
    assert rows["exclude-alpha"]["method"] != rows["decay-all"]["method"]
    assert rows["exclude-alpha"]["test_loss_difference"] is not None
    frame = decaybench.load("results/s").set_index(["strategy", "seed"])
    assert frame.loc[("exclude-alpha", 0), "train_loss"] != frame.loc[("decay-all", 0), "train_loss"]
    assert frame.loc[("alpha-only", 0), "train_loss"] != frame.loc[("decay-all", 0), "train_loss"]
