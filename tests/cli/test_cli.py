"""The command line, in this process and as a real one: results on stdout, everything else on stderr."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli
from typer.testing import CliRunner, Result

import decaybench
from decaybench import registry
from decaybench.cli import app
from helpers import REPOSITORY
from made_records import summary_of

TINY = ["--dataset", "synthetic,samples=200", "--network", "mlp,width=16", "--epochs", "1", "--seeds", "2"]
TINY += ["--executor", "inline", "--weight-decay", "0.002"]
TINY += ["--activation", "prelu", "--strategy", "decay-all", "--strategy", "exclude-alpha", "--name", "t"]

FIRST_LOOK = str(REPOSITORY / "results" / "first-look")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DECAYBENCH_DATA", str(tmp_path))  # no test touches a user's cache
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.slow
def test_run_then_report_in_every_format(here: Path) -> None:
    done = invoke("run", *TINY, "--verbose")
    assert done.exit_code == 0, done.output
    assert "exclude-alpha" in done.stdout
    assert "Starting" not in done.stdout
    for number in range(1, 5):  # in whatever order they end
        assert f"[{number}/4] synthetic,samples=200 mlp,width=16 prelu" in done.stderr
    assert "More: decaybench report results/t --output report.html" in done.stderr
    rows = json.loads(invoke("report", "results/t", "--format", "json").stdout)
    assert [(r["strategy"], r["seeds"]) for r in rows] == [("decay-all", 2), ("exclude-alpha", 2)]
    assert 0 <= rows[0]["test_accuracy"] <= 1
    assert invoke("report", "--format", "markdown").stdout.startswith("| dataset |")
    assert invoke("report", "--format", "csv").stdout.startswith("dataset,network,")
    assert "layer" in invoke("report", "--layers").stdout
    assert invoke("report", "--output", "r.txt").stdout == ""
    assert "exclude-alpha" in Path("r.txt").read_text()
    frame = decaybench.load("results/t")
    for row in rows:
        mine = frame[frame.strategy == row["strategy"]]
        assert mine.test_accuracy.mean() == pytest.approx(row["test_accuracy"])


def test_the_same_command_again_computes_nothing_and_more_seeds_only_the_rest(here: Path) -> None:
    invoke("run", *TINY)
    before = {p.name: p.stat().st_mtime_ns for p in Path("results/t/runs").iterdir()}
    again = invoke("run", *TINY)
    assert again.exit_code == 0
    assert "[" not in again.stderr
    assert {p.name: p.stat().st_mtime_ns for p in Path("results/t/runs").iterdir()} == before
    more = invoke("run", *TINY, "--seeds", "3")
    assert "4 runs finished before, 2 to compute" in more.stderr
    assert "[6/6]" in more.stderr
    assert "seeds = 3" in Path("results/t/study.toml").read_text()


@pytest.mark.slow
def test_other_seeds_are_shown_alone(here: Path) -> None:
    invoke("run", *TINY)
    others = invoke("run", *TINY, "--first-seed", "2")
    assert "[4/4]" in others.stderr
    shown = invoke("report", "results/t", "--format", "json")
    assert {row["seeds"] for row in json.loads(shown.stdout)} == {2}
    assert "4 runs that study.toml does not ask for are left out" in shown.stderr
    assert invoke("run", *TINY, "--first-seed", "-1").exit_code == 2


@pytest.mark.slow
def test_runs_that_were_packed_without_layers_are_not_taken_over(here: Path) -> None:
    invoke("run", *TINY)
    assert invoke("pack", "--no-layers", "results/t").exit_code == 0
    shown = invoke("report", "results/t")
    assert "4 of 4 runs were packed without layers" in " ".join((shown.stdout + shown.stderr).split())
    again = invoke("run", *TINY, "--name", "other")
    assert "are taken over" not in again.stderr
    assert decaybench.load("results/other").alpha_mean.notna().all()
    assert "4 runs are taken over from results/other" in invoke("run", *TINY, "--name", "third").stderr


def test_the_study_file_runs_again_to_the_same_runs(here: Path) -> None:
    invoke("run", *TINY)
    done = invoke("run", "results/t/study.toml", "--dry-run")
    assert done.stdout.startswith("4 runs: 4 finished in results/t, 0 to compute")


def test_dry_run_writes_nothing(here: Path) -> None:
    done = invoke("run", *TINY, "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.startswith("4 runs: 0 finished in results/t, 4 to compute")
    assert "exclude-alpha sgd lr=0.05 weight_decay=0.002 epochs=1: 2 seeds, 2 to compute" in done.stdout
    assert not Path("results").exists()


def test_fresh_says_what_it_deletes_and_asks(here: Path) -> None:
    invoke("run", *TINY)
    refused = invoke("run", *TINY, "--fresh")
    assert refused.exit_code == 2
    assert "--fresh deletes 4 finished runs in results/t." in refused.stderr
    assert "add --yes" in refused.stderr
    assert len(list(Path("results/t/runs").iterdir())) == 4
    for wrong in (["--device", "cuda:99"], ["--dataset", "synthetic,samples=200", "--network", "kafnet"]):
        assert invoke("run", *TINY, "--fresh", "--yes", *wrong).exit_code == 2
        assert len(list(Path("results/t/runs").iterdir())) == 4  # nothing is deleted for what cannot run
    done = invoke("run", *TINY, "--fresh", "--yes")
    assert done.exit_code == 0
    assert "0 runs finished before, 4 to compute" in done.stderr


def test_options_override_a_file(here: Path) -> None:
    Path("s.toml").write_text("dataset = 'synthetic'\nepochs = [1, 2]\nstrategy = 'decay-all'\nseeds = 1\n")
    assert invoke("run", "s.toml", "--dry-run").stdout.startswith("4 runs")
    assert invoke("run", "s.toml", "--epochs", "7", "--activation", "prelu", "--dry-run").stdout.startswith("1 runs")


def test_every_field_of_a_study_is_an_option() -> None:
    from decaybench.study.study import Study

    help_text = invoke("run", "--help").stdout
    for field in set(Study.model_fields) - {"description"}:
        assert f"--{field.replace('_', '-')}" in help_text


def test_list_names_everything_in_one_line_each() -> None:
    done = invoke("list")
    for entries in [*registry.FAMILIES.values(), registry.RECIPES]:
        for name, entry in entries.items():
            assert f"{name} " in done.stdout
            assert entry.summary in done.stdout
    assert "smoke" in done.stdout
    assert "D=20, boundary=4.0" in invoke("list", "activations").stdout
    assert "did you mean 'strategies'" in invoke("list", "strategy").stderr


def test_a_study_goes_on_after_a_run_that_diverges(here: Path) -> None:
    done = invoke("run", *TINY, "--lr", "1e20", "--lr", "0.05", "--epochs", "2", "-v")
    assert done.exit_code == 0
    assert "diverged in epoch 1" in done.stderr
    rows = json.loads(invoke("report", "results/t", "--format", "json").stdout)
    assert {(r["lr"], r["diverged"]) for r in rows} == {(0.05, 0), (1e20, 2)}
    assert "2 of 2 runs diverged" in invoke("report").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--strategy", "exclude-alfa"], 2, "did you mean 'exclude-alpha'"),
        (["run", "--primary", "exclude-alfa:loss"], 2, "did you mean 'exclude-alpha'"),
        (["report", FIRST_LOOK, "--primary", "exclude-alpha:lss"], 2, "behind the strategy stands a metric"),
        (["run", "digit"], 2, "did you mean 'digits'"),
        (["run", "--lr", "fast"], 2, "--lr 'fast': input should be a valid number"),
        (["run", "--epochs", "0"], 2, "--epochs '0': input should be greater than 0"),
        (["run", "--optimiser", "sgd"], 2, "--optimizer"),
        (["run", "--device", "cuda:99"], 2, "--device cuda:99"),
        (["run", "--device", "tpu"], 2, "allowed are auto, cpu, cuda"),
        (["bench", "study", "--device", "tpu"], 2, "allowed are auto, cpu, cuda"),
        (["bench", "activations", "--device", "cuda:x"], 2, "allowed are auto, cpu, cuda"),
        (["run", "--network", "kafnet"], 2, "needs images of at least 9×9"),
        (["run", "--data-dir", "/nowhere"], 2, "there is no such folder"),
        (["run", "--name", "../../x"], 2, "a name becomes a folder"),
        (["run", "--dataset", "broken.py:f"], 2, "ZeroDivisionError: division by zero"),
        (["run", "--dataset", "broken2.py:g"], 2, "Unknown attribute of broken2.py 'g': did you mean 'gg'"),
        (["run", "--dataset", "broken2.py:gg,size=3"], 2, "takes (); it was given 0 positional arguments"),
        (["run", "--network", "broken2.py:net"], 2, "it must give (2, 10), one number per class"),
        (["run", "--activation", "broken2.py:act"], 2, "returned str, not a module"),
        (["run", "--network", "broken2.py:X"], 2, "is a int, which cannot be called"),
        (["run", "--dataset", "broken2.py:ragged"], 2, "numpy cannot read what it returned"),
        (["run", "--dataset", "broken2.py:texts"], 2, "train_x holds <U1, not real numbers"),
        (["run", "--dataset", "broken2.py:sizes"], 2, "images for training and test differ in shape"),
        (["run", "--activation", "kaf,D=8,D=9"], 2, "D is given twice"),
        (["run", "--strategy", "loss-penalty,penalty=elastic"], 2, "did you mean 'elastic-net'"),
        (["run", "--augment", "croop"], 2, "did you mean 'crop'"),
        (["run", "--precision", "float16"], 2, "did you mean 'bfloat16'"),
        (
            ["run", "--precision", "tf32", "--device", "cpu"],
            2,
            "precision tf32: only CUDA GPUs from compute capability 8.0 on",
        ),
        (["run", "bad.toml"], 2, "bad.toml: activation kaf: D = [] needs at least one value."),
        (["run", "latin.toml"], 2, "latin.toml is not valid TOML: it is not UTF-8 (at line 2, column 9)."),
        (["report"], 2, "start with: decaybench run"),
        (["run", "--device", "foo", "--dry-run"], 2, "--device 'foo': allowed are auto"),
        (
            ["run", "--dataset", "broken2.py:fails"],
            2,
            "dataset broken2.py:fails fails at broken2.py:7: ValueError: no such luck.",
        ),
        (["run", "--network", "broken2.py:crashes"], 2, "given two inputs of (1, 8, 8), fails: RuntimeError"),
        (["run", "--strategy", "broken2.py:gg"], 2, "The strategy broken2.py:gg takes ()"),
        (["report", FIRST_LOOK, "--baseline", "decay-al"], 2, "did you mean 'decay-all'"),
        (["report", "nowhere"], 2, "nowhere is no study folder"),
        (["report", "--format", "xml"], 2, "Unknown value of --format 'xml'"),
        (["runn"], 2, "No such command"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_sentence_without_a_traceback(
    here: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "bad.toml").write_text("activation = { name = 'kaf', D = [] }\n")
    (tmp_path / "latin.toml").write_bytes(b"seeds = 1\nname = '\xe9'\n")
    (tmp_path / "broken2.py").write_text(
        "import torch\nX = 3\ndef gg(): ...\ndef act(channels): return 'x'\n"
        "def net(shape, classes, activation): return torch.nn.Flatten()\n"
        "def crashes(shape, classes, activation): return torch.nn.Linear(3, 3)\n"
        "def fails(): raise ValueError('no such luck')\n"
        "import numpy as np\ny = np.array([0, 1])\n"
        "def ragged(): return [[1], [1, 2]], y, [[1]], y\n"
        "def texts(): return np.full((2, 1, 4, 4), 'a'), y, np.full((2, 1, 4, 4), 'a'), y\n"
        "def sizes(): return np.zeros((2, 1, 4, 4)), y, np.zeros((2, 1, 5, 5)), y\n"
    )
    done = invoke(*arguments, *(["--executor", "inline"] if arguments[0] == "run" else []))
    assert done.exit_code == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "results").exists()


def test_debug_shows_the_traceback(cli: Cli) -> None:
    done = cli("run", "--strategy", "x", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "UsageError: Unknown strategy 'x'" in done.stderr
    assert "Exit" not in done.stderr


@pytest.mark.slow
def test_an_absent_cuda_is_an_error_and_no_silent_cpu_run(cli: Cli, tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    done = cli("run", *TINY, "--device", "cuda", env=environment)
    assert done.returncode == 2
    assert "finds 0 such devices here; use --device cpu or auto" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_damaged_records_are_named_and_the_rest_is_reported(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", *TINY).returncode == 0
    victim = sorted((tmp_path / "results/t/runs").iterdir())[0]
    victim.write_text(victim.read_text()[:200])
    done = cli("report", "results/t", "--format", "json")
    assert done.returncode == 0
    assert victim.name in done.stderr
    assert sum(row["seeds"] for row in json.loads(done.stdout)) == 3
    again = cli("run", *TINY)
    assert "3 runs finished before, 1 to compute" in again.stderr
    assert sum(row["seeds"] for row in json.loads(cli("report", "--format", "json").stdout)) == 4


@pytest.mark.slow
def test_a_read_only_or_missing_place_for_results_is_explained(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    done = cli("run", *TINY)
    assert done.returncode == 1
    assert "Cannot write results/t/study.toml: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_help_version_and_list_do_not_import_torch() -> None:
    for arguments in (["--help"], ["--version"], ["list"], ["run", "--help"], ["run", "--dry-run"], ["report", "x"]):
        code = (
            "import sys\nfrom decaybench.cli import app\n"
            f"try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\n"
            "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'sklearn')))"
        )
        assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True).returncode == 0


def test_the_console_script_and_the_module_are_the_same(cli: Cli) -> None:
    script = Path(sys.executable).with_name("decaybench")
    by_script = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert by_script == cli("--version").stdout == f"decaybench {decaybench.__version__}\n"


@pytest.mark.slow
def test_a_full_disk_is_no_fault_of_ours(cli: Cli, tmp_path: Path) -> None:
    cli("run", *TINY)
    command = f"{sys.executable} -m decaybench report results/t > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "fault" not in done.stderr


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_error(cli: Cli, tmp_path: Path) -> None:
    cli("run", *TINY)
    command = f"{sys.executable} -m decaybench report results/t --format csv | true"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert "Traceback" not in done.stderr


def test_a_study_file_of_any_name_runs(here: Path) -> None:
    Path("my study (2).toml").write_text("dataset = 'synthetic'\nseeds = 1\n")
    assert "results/my-study--2-" in invoke("run", "my study (2).toml", "--dry-run").stdout
    assert "in results/ok" in invoke("run", "my study (2).toml", "--name", "ok", "--dry-run").stdout


def test_a_network_that_fails_only_in_training_is_named(here: Path) -> None:
    Path("net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        if self.training: raise ValueError('not today')\n        return super().forward(x.flatten(1))\n"
        "def net(shape, classes, activation): return Net(64, classes)\n"
    )
    done = invoke("run", *TINY, "--network", "net.py:net")
    assert done.exit_code == 1
    assert "decay-all (seed 0, epoch 1, step 1) fails at net.py:4: ValueError: not today." in done.stderr


def test_a_narrow_table_says_what_it_leaves_out(here: Path) -> None:
    from rich.console import Console

    from decaybench.analysis.comparison import ComparisonSettings
    from decaybench.report.terminal import print_summary
    from decaybench.results.store import StudyFolder

    invoke("run", *TINY)
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(summary_of(StudyFolder(Path("results/t")).load().records), console, ComparisonSettings())
    assert "--wide shows every column." in " ".join(console.export_text().split())


def test_runs_that_are_trained_together_are_one_line_unless_more_or_less_is_asked_for(here: Path) -> None:
    usual = invoke("run", *TINY, "--executor", "inline")
    assert re.search(r"\[4/4\] 4 runs, the first synthetic.* prelu [\w-]+: validation accuracy \d", usual.stderr)
    assert "[1/4]" not in usual.stderr
    quiet = invoke("run", *TINY, "--executor", "inline", "--fresh", "--yes", "--quiet")
    assert "[4/4]" not in quiet.stderr
    assert "Starting" not in quiet.stderr
    assert quiet.stdout == usual.stdout
