"""What a run is: own code with all it imports, data by content, numbers in one form."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli

import decaybench
from decaybench.errors import UsageError
from decaybench.execution.inline import Inline
from decaybench.execution.job import Failure, Job, Jobs, Message, failed
from decaybench.execution.scheduler import Scheduler
from decaybench.results.store import StudyFolder
from decaybench.study.config import RunConfig
from decaybench.study.study import read_study
from decaybench.training import checkpoint
from decaybench.training.trainer import Training
from helpers import CPU, REPOSITORY, tiny

NET = """
from torch import nn
import sizes

def make(shape, classes, activation):
    c, h, w = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, sizes.WIDTH), activation(sizes.WIDTH),
                         nn.Linear(sizes.WIDTH, classes))
"""
DATA = """
import numpy as np
from pathlib import Path

def points():
    rng = np.random.default_rng(int(Path("seed.txt").read_text()))
    x = rng.normal(size=(200, 1, 4, 4)).astype("float32")
    y = (x.sum((1, 2, 3)) > 0).astype(int)
    return x[50:], y[50:], x[:50], y[:50]
"""
OWN = ["run", "--name", "k", "--activation", "prelu", "--strategy", "decay-all", "--epochs", "1", "--workers", "1"]
OWN += ["--weight-decay", "0.002", "--seeds", "5"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "sizes.py").write_text("WIDTH = 4\n")
    (tmp_path / "points.py").write_text(DATA)
    (tmp_path / "seed.txt").write_text("0")
    return tmp_path


def rows(cli: Cli, name: str = "k") -> list[dict[str, Any]]:
    done = cli("report", f"results/{name}", "--format", "json", "--everything")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_module_that_own_code_imports_is_part_of_its_identity(project: Path, cli: Cli) -> None:
    command = [*OWN, "--network", "net.py:make", "--dataset", "synthetic,samples=200"]
    assert cli(*command, "--seeds", "2").returncode == 0
    (project / "sizes.py").write_text("WIDTH = 9\n")
    done = cli(*command, "--seeds", "4")
    assert done.returncode == 0, done.stderr
    assert sorted(row["seeds"] for row in rows(cli)) == [2, 4]  # two networks, never averaged


@pytest.mark.slow
def test_data_that_changed_are_refused_by_run_and_never_averaged_by_report(project: Path, cli: Cli) -> None:
    command = [*OWN, "--network", "mlp,width=4", "--dataset", "points.py:points"]
    assert cli(*command, "--seeds", "2").returncode == 0
    (project / "seed.txt").write_text("1")
    done = cli(*command, "--seeds", "4")
    assert done.returncode == 2
    assert "is not the one that finished runs in results/k were trained on" in done.stderr
    assert "--fresh" in done.stderr
    assert cli(*command, "--seeds", "2").returncode == 2  # also where nothing is missing
    other = [word if word != "k" else "other" for word in command]
    done = cli(*other, "--seeds", "4")
    assert done.returncode == 0
    assert "taken over" not in done.stderr
    for path in (project / "results" / "other" / "runs").glob("*.json"):
        if not (project / "results" / "k" / "runs" / path.name).exists():
            (project / "results" / "k" / "runs" / path.name).write_bytes(path.read_bytes())
    done = cli("report", "results/k", "--format", "json")
    assert "2 runs that study.toml does not ask for are left out" in done.stderr
    done = cli("report", "results/k", "--format", "json", "--everything")
    assert "stands for 2 different data sets" in done.stderr
    assert [row["seeds"] for row in json.loads(done.stdout)] == [2, 2]
    frame = decaybench.load(project / "results" / "k")
    assert frame["source_fingerprint"].nunique() == 2


LATE = """
from torch import nn

class Late(nn.Module):
    def __init__(self, channels):
        super().__init__()
        from factor import FACTOR
        self.slope = nn.Parameter(0.1 * FACTOR * __import__("torch").ones(channels))

    def forward(self, s):
        return s.clamp(min=0) + self.slope.reshape(1, -1, *[1] * (s.ndim - 2)) * s.clamp(max=0)
"""


@pytest.mark.slow
def test_a_file_that_is_edited_while_a_study_runs_changes_nothing(project: Path, cli: Cli) -> None:
    """The second file is imported by a later job, in a new process."""
    (project / "late.py").write_text(LATE)
    (project / "factor.py").write_text("FACTOR = 1\n")
    command = [*OWN, "--network", "mlp,width=4", "--dataset", "synthetic,samples=400", "--executor", "processes"]
    command += ["--activation", "late.py:Late", "--seeds", "2", "--epochs", "400"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-m", "decaybench", *command], cwd=project, env=environment, text=True, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "[1/" in line:  # the first run is finished, the activation of one's own comes later
            break
    (project / "factor.py").write_text("FACTOR = 50\n")
    process.communicate(timeout=120)
    assert process.returncode == 0
    starts = [layer.initial for r in StudyFolder(project / "results/k").load().records for layer in r.layers]
    assert {float(value) for start in starts for value in start if start is not None} <= {0.25, np.float32(0.1)}


FUNCTIONS = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, channels, norm=True, beta: float = 1.0):
        super().__init__()
        self.beta = nn.Parameter(torch.full((channels,), beta))
        self.kind = repr(norm)

    def forward(self, s):
        return s * torch.sigmoid(self.beta.reshape(1, -1, *[1] * (s.ndim - 2)) * s)
"""


def test_values_that_python_calls_equal_are_not_merged_and_numbers_have_one_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(FUNCTIONS)
    base = {
        "network": "mlp,width=4",
        "dataset": "synthetic,samples=200",
        "strategy": "decay-all",
        "weight_decay": 0.002,
        "epochs": 1,
        "seeds": 3,
    }

    def ids(**fields: Any) -> list[str]:
        return [run.run_id for run in read_study(None, {**base, **fields}).runs()]

    table = {"name": "own.py:Scaled", "norm": [True, 1, 1.0]}
    runs = read_study(None, {**base, "activation": [table]}).runs()
    assert len({run.cell_id for run in runs}) == 2  # true is not 1, and 1 is 1.0
    assert ids(activation=[{"name": "own.py:Scaled", "beta": 1}]) == ids(activation=["own.py:Scaled,beta=1.0"])
    texts = read_study(None, {**base, "activation": [{"name": "own.py:Scaled", "norm": ["1", 1]}]}).runs()
    assert len({run.activation.label for run in texts}) == 2  # the text 1 is not the number
    with pytest.raises(UsageError, match=r"write package\.module:name or path/to/file\.py:name"):
        ids(activation=["own.py:"])
    assert ids(activation=["own.py:Scaled,beta=2,norm=3"]) == ids(activation=["own.py:Scaled,norm=3,beta=2"])
    assert ids(weight_decay=0.0) == ids(weight_decay=-0.0)
    assert ids(activation=["prelu,init=0"]) == ids(activation=["prelu,init=-0.0"])
    with pytest.raises(UsageError, match="beta = nan: a number must be finite"):
        ids(activation=["own.py:Scaled,beta=nan"])
    folder = StudyFolder(tmp_path / "study")
    list(Scheduler(Inline(CPU), folder, CPU).run(runs))
    frame = decaybench.load(folder.path)
    assert sorted(frame.groupby("cell_id").size()) == [3, 3]
    assert frame["activation"].nunique() == 2


def test_a_whole_number_is_given_as_the_type_that_own_code_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.full` with 1 would give integers, which cannot be trained."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(FUNCTIONS)
    runs = tiny(activation="own.py:Scaled,beta=1", strategy="decay-all", epochs=1).runs()
    folder = StudyFolder(tmp_path / "study")
    list(Scheduler(Inline(CPU), folder, CPU).run(runs))
    assert len(folder.load()) == 1


DRAWS = """
import random
import numpy
import torch
from torch import nn

class Draws(nn.Linear):
    def __init__(self, *a):
        super().__init__(*a)
        self.weight.data += torch.from_numpy(numpy.random.normal(size=self.weight.shape)).float() * random.random()

    def forward(self, x):
        x = x.flatten(1)
        return super().forward(x * (1 + 0.1 * random.random() + 0.1 * float(numpy.random.rand())))

def net(shape, classes, activation):
    return nn.Sequential(Draws(shape[0] * shape[1] * shape[2], classes), activation(classes))

def always(shape, classes, activation):
    torch.manual_seed(42)
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes), activation(classes))
"""


def test_a_network_that_draws_from_random_and_numpy_gives_the_same_numbers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("draws.py").write_text(DRAWS)
    runs = tiny(network="draws.py:net", activation="prelu", strategy=["decay-all", "exclude-alpha"], epochs=4).runs()
    found = []
    for name in ("first", "second"):
        random.seed(name)
        np.random.seed(len(name))
        folder = StudyFolder(tmp_path / name)
        list(Scheduler(Inline(CPU), folder, CPU).run(runs))
        found.append({r.run_id: (r.history, r.layers, r.fingerprints) for r in folder.load().records})
    assert found[0] == found[1]
    stopped = StudyFolder(tmp_path / "stopped")
    going = Scheduler(Inline(CPU), stopped, CPU, checkpoint_seconds=0.0).run(runs[:1])
    next(event for event in going if event.epochs and event.epochs[-1].number == 2)
    going.close()  # type: ignore[attr-defined]
    list(Scheduler(Inline(CPU), stopped, CPU).run(runs[:1]))
    (resumed,) = stopped.load().records
    assert (resumed.history, resumed.layers, resumed.fingerprints) == found[0][resumed.run_id]


@pytest.mark.slow
def test_seeds_that_start_alike_are_said_to_be_no_repetitions(project: Path, cli: Cli) -> None:
    (project / "draws.py").write_text(DRAWS)
    done = cli(*OWN, "--network", "draws.py:always", "--dataset", "synthetic,samples=200", "--seeds", "3")
    assert "seeds 0, 1, 2 start from the same tensors" in " ".join(done.stdout.split())
    assert "torch.manual_seed" in done.stdout


SMALL = ["run", "--dataset", "synthetic,samples=200", "--network", "mlp,width=4", "--epochs", "1", "--workers", "1"]
SMALL += ["--weight-decay", "0.002", "--seeds", "5"]


@pytest.mark.slow
def test_another_study_in_a_folder_is_noticed(tmp_path: Path, cli: Cli) -> None:
    for name, epochs in (("A", 1), ("B", 2)):
        (tmp_path / name).mkdir()
        fields = f'epochs = {epochs}\nseeds = 1\ndataset = "synthetic"\nnetwork = "mlp"\nstrategy = "decay-all"\n'
        (tmp_path / name / "study.toml").write_text(fields)
    assert cli("run", "A/study.toml").returncode == 0
    assert cli("run", "A/study.toml").returncode == 0
    done = cli("run", "B/study.toml")
    assert done.returncode == 2
    assert "results/study holds another study, which differs in epochs; give --name" in done.stderr
    assert cli("run", "B/study.toml", "--name", "other").returncode == 0


@pytest.mark.slow
def test_runs_of_other_folders_are_taken_over_and_said(tmp_path: Path, cli: Cli) -> None:
    assert cli(*SMALL, "--name", "few", "--strategy", "decay-all", "--seeds", "2").returncode == 0
    assert cli("pack", "results/few").returncode == 0
    both = ["--strategy", "decay-all", "--strategy", "exclude-alpha", "--seeds", "2"]
    done = cli(*SMALL, "--name", "more", *both)
    assert "4 runs are taken over from results/few." in done.stderr
    assert "4 runs finished before, 4 to compute" in done.stderr
    done = cli(*SMALL, "--name", "more", *both, "--fresh", "--yes")
    assert "0 runs finished before, 8 to compute" in done.stderr
    assert "taken over" not in done.stderr


def test_only_what_the_study_asks_for_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that names, beside a run of the study, a data set that is a command."""
    monkeypatch.chdir(tmp_path)
    runs = tiny(activation="prelu", strategy=["decay-all", "exclude-alpha"], epochs=2).runs()
    scheduler = Scheduler(Inline(CPU), StudyFolder(tmp_path / "study"), CPU)
    training = Training(runs, scheduler.data(runs[0]))
    evil = runs[1].model_dump()
    evil["dataset"] = {"name": "os:system", "options": {"command": "touch executed"}, "source": "x"}
    training.runs[1].config = RunConfig.model_validate(evil)
    scheduler.folder.write_checkpoint("evil", checkpoint.save(training))
    list(scheduler.run(runs))
    assert not (tmp_path / "executed").exists()
    assert {r.run_id for r in scheduler.folder.load().records} == {run.run_id for run in runs}


class LosesOnce:
    """An executor whose worker is lost once, after it has sent a checkpoint."""

    def __init__(self, study: Path) -> None:
        self.study, self.sizes, self.resumed = study, [], False

    def run(self, jobs: Jobs, data: Any) -> Iterator[Message]:
        job = jobs.take()
        assert job is not None
        training = Training(job.configs, data(job.configs[0]), job.stacked)
        training.advance()
        yield Message(job.id, "w", saved=checkpoint.save(training))
        yield failed(job.id, "w", Failure.lost, "it was lost")
        assert len(StudyFolder(self.study).checkpoints()) == 1  # the driver may be killed now
        again = jobs.take()
        assert again is not None
        self.resumed = again.saved is not None


def test_the_checkpoint_of_a_lost_job_stays_until_the_job_is_done(tmp_path: Path) -> None:
    executor = LosesOnce(tmp_path)
    runs = tiny(activation="prelu", strategy="decay-all", epochs=2).runs()
    events = list(Scheduler(executor, StudyFolder(tmp_path), CPU).run(runs))
    assert executor.resumed
    assert any("Trying again" in (event.trouble or "") for event in events)
    assert len(StudyFolder(tmp_path).checkpoints()) == 1


def test_messages_of_a_resumed_job_do_not_carry_its_checkpoint() -> None:
    assert "saved" in Job.__dataclass_fields__
    assert Message.__dataclass_fields__["job_id"].type is str
    assert not any("Job" in str(field.type) for field in Message.__dataclass_fields__.values())


def test_a_run_that_is_resumed_on_another_machine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tiny(activation="kaf", strategy="decay-all", epochs=3).runs()
    folder = StudyFolder(tmp_path)
    going = Scheduler(Inline(CPU), folder, CPU, checkpoint_seconds=0.0).run(runs)
    next(event for event in going if event.epochs and event.epochs[-1].number == 2)
    going.close()  # type: ignore[attr-defined]
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "ANOTHER")
    list(Scheduler(Inline(CPU), folder, CPU).run(runs))
    (record,) = folder.load().records
    assert record.provenance["cpu_capability"] == "ANOTHER"
    assert record.provenance["resumed_from"]["cpu_capability"] != "ANOTHER"
    assert record.provenance["backends"].keys() == {"KAF"}
    done = subprocess.run(
        [sys.executable, "-m", "decaybench", "report", str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert "may differ by rounding: CPU capability (ANOTHER;" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_study_folder_that_is_killed_goes_on_from_its_checkpoint_in_the_command_line(
    tmp_path: Path, cli: Cli
) -> None:
    """At least ten kills after a checkpoint exists; each costs no more than what came after it."""
    command = [*SMALL, "--name", "k", "--strategy", "decay-all", "--activation", "prelu", "--seeds", "1"]
    command[command.index("1", command.index("--epochs"))] = "6000"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    kills, place = 0, tmp_path / "results/k/checkpoints"
    while kills < 10:
        process = subprocess.Popen(
            [sys.executable, "-m", "decaybench", *command, "--checkpoint-every", "0.05"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = {p: p.stat().st_mtime_ns for p in place.glob("*.pt")}
        while process.poll() is None:
            after = {p: p.stat().st_mtime_ns for p in place.glob("*.pt")}
            if after and after != before:
                break
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == 10
    assert cli(*command).returncode == 0
    (record,) = StudyFolder(tmp_path / "results/k").load().records
    whole = Scheduler(Inline(CPU), StudyFolder(tmp_path / "whole"), CPU)
    list(whole.run([RunConfig.model_validate(record.config)]))
    (other,) = whole.folder.load().records
    assert (record.history, record.layers) == (other.history, other.layers)
