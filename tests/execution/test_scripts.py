"""A study of somebody's own script: what it starts, what it takes over, and what it says when a script goes wrong."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from typer.testing import CliRunner

from decaybench.cli import app
from decaybench.errors import UsageError
from decaybench.execution.event import Event
from decaybench.execution.scripts import LocalPool, ScriptJob, ScriptScheduler, local_pool, run_script
from decaybench.execution.scripts import ScriptOptions as Options
from decaybench.registry.imports import script_files
from decaybench.registry.spec import Spec
from decaybench.results.record import Record, dumps
from decaybench.results.store import StudyFolder
from decaybench.study.config import ScriptConfig
from decaybench.study.study import ScriptStudy, read_study, to_toml
from helpers import REPOSITORY

# What a trial does, without torch, which takes seconds to import: the record of the run, whole and at once.
HEAD = """
import json, os, sys, time
task = json.load(open(os.environ.pop("DECAYBENCH_TRIAL")))  # so that decaybench seeds no torch
folder, seed = task["folder"], task["config"]["seed"]
def begin(): open(folder + "/begun", "w").close()
def log(epoch, **metrics):
    with open(folder + "/log.jsonl", "a") as file:
        file.write(json.dumps({"epoch": epoch, "metrics": metrics}) + "\\n")
def finish(value):
    from decaybench.results.record import Record, dumps
    from decaybench.study.config import ScriptConfig
    config = ScriptConfig.model_validate(task["config"])
    record = Record(config.run_id, config.model_dump(), {"initial": f"{seed:016x}"}, None, {"loss": [value]},
                    metrics={"loss": "lower"})
    open(folder + "/outcome.json", "wb").write(dumps(record))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def study(body: str, **fields: Any) -> ScriptStudy:
    """A study of a script with this body, behind the stand-in for a trial."""
    Path("train.py").write_text(HEAD + body)
    given = {"script": "python train.py", "strategy": "decay-all", "weight_decay": 0.1, "seeds": 2, **fields}
    found = read_study(None, given)
    assert isinstance(found, ScriptStudy)
    return found


def run(asked: ScriptStudy, workers: int = 1, **options: Any) -> tuple[list[Event], StudyFolder]:
    folder = StudyFolder(Path("results") / asked.name)
    scheduler = ScriptScheduler(LocalPool(workers), folder, tuple(asked.metric), **options)
    missing = [config for config in asked.runs() if not folder.has(config.run_id)]
    scheduler.check(missing, {config.run_id: "" for config in asked.runs() if folder.has(config.run_id)})
    return list(scheduler.run(missing)), folder


def troubles(events: list[Event]) -> list[str]:
    return [event.trouble for event in events if event.trouble]


def test_each_run_is_a_process_that_knows_its_seed_and_leaves_a_record() -> None:
    asked = study("begin()\nlog(1, loss=2.0)\nlog(2, loss=1.5)\nfinish(seed + 0.5)\nprint('seed', seed)")
    events, folder = run(asked, workers=2)
    assert not troubles(events)
    assert sorted(r.final("loss") for r in folder.load_records()) == [0.5, 1.5]
    logged = [(e.number, dict(e.scores)) for event in events for e in event.epochs]
    assert sorted(logged, key=str) == [(1, {"loss": 2.0}), (1, {"loss": 2.0}), (2, {"loss": 1.5}), (2, {"loss": 1.5})]
    for config in asked.runs():
        assert (folder.path / "output" / f"{config.run_id}.txt").read_text() == f"seed {config.seed}\n"
    assert list((folder.path / "attempts").iterdir()) == []
    assert run(asked)[0] == []  # nothing is missing


def test_options_and_placeholders_become_words_of_the_command() -> None:
    asked = study(
        "begin()\nfinish(float(len(sys.argv)) + seed)\nprint(json.dumps(sys.argv[1:]))",
        script="python train.py --seed {seed} --name {strategy}-{weight_decay}",
        args={"size": ["small big"], "fast": [True, False], "lr": [0.1], "version": ["1.10"]},
        seeds=1,
    )
    _, folder = run(asked)
    found = {c.args["fast"]: json.loads((folder.path / "output" / f"{c.run_id}.txt").read_text()) for c in asked.runs()}
    rest = ["--lr", "0.1", "--version", "1.10"]
    common = ["--seed", "0", "--name", "decay-all-0.1", "--size", "small big"]
    assert found == {True: [*common, "--fast", *rest], False: [*common, *rest]}


FAULTS = [
    ("pass", "it never called decaybench.trial"),
    ("begin()", "it never called trial.finish"),
    ("begin()\nraise ValueError('my own fault')", "exit code 1: ValueError: my own fault"),
    ("begin()\nopen(folder + '/error.txt', 'w').write('Something is wrong.')\nsys.exit(1)", "Something is wrong"),
    ("begin()\nopen(folder + '/outcome.json', 'w').write('{}')", "it left a record that cannot be read"),
    ("begin()\nfinish(1.0)\nopen(folder + '/error.txt', 'w').write('Twice.')", "fails: Twice"),
    ("begin()\nos.kill(os.getpid(), 9)", "fails: SIGKILL."),
    ("begin()\ntime.sleep(60)", "it took longer than 3 s (--time-limit) and was ended"),
]


@pytest.mark.parametrize(("body", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_a_script_that_goes_wrong_costs_its_run_and_says_why(body: str, said: str) -> None:
    good = "\nelse:\n    begin()\n    finish(1.0)"
    asked = study("if seed == 0:\n" + "".join(f"    {line}\n" for line in body.splitlines()) + good.lstrip("\n"))
    limit = 3.0 if "sleep" in body else None
    events, folder = run(asked, time_limit=limit)
    (trouble,) = troubles(events)
    assert said in trouble
    assert "seed 0 fails: " in trouble
    assert trouble.endswith(f"Its output is in {folder.path}/output/{asked.runs()[0].run_id}.txt.")
    assert [e.failed.seed for e in events if e.failed is not None] == [0]
    assert [r.seed for r in folder.load_records()] == [1]  # the study goes on


def test_what_finished_before_a_crash_is_kept() -> None:
    events, folder = run(study("begin()\nfinish(1.0 + seed)\nsys.exit(3)"))
    assert all("ended with exit code 3 after trial.finish; its record is kept" in t for t in troubles(events))
    assert folder.count() == 2


def test_seeds_that_give_the_same_numbers_from_the_same_start_are_no_repetitions() -> None:
    asked = study("begin()\nseed = 7\nfinish(1.0)", seeds=3)
    events, folder = run(asked)
    assert len(troubles(events)) == 2
    assert all(
        "it gave exactly the numbers of seed 0: the script sets a seed of its own" in t for t in troubles(events)
    )
    assert folder.count() == 1
    again, _ = run(asked)  # also when seed 0 was finished by an earlier study
    assert all("seed 0" in t for t in troubles(again))
    assert len(troubles(again)) == 2


def test_another_version_of_the_script_is_another_run() -> None:
    asked = study("begin()\nfinish(1.0 + seed)")
    _, folder = run(asked)
    Path("helper.py").write_text("VALUE = 1\n")
    changed = study("import helper\nbegin()\nfinish(2.0 + seed)", name=asked.name)
    ids = {config.run_id for config in changed.runs()}
    assert not ids & {record.run_id for record in folder.load_records()}
    Path("helper.py").write_text("VALUE = 2\n")
    assert not ids & {config.run_id for config in changed.runs()}  # what it imports counts, too


def test_of_two_modules_of_one_name_the_one_that_python_imports_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helper.py").write_text(f"VALUE = {folder!r}\n")
    monkeypatch.setattr("decaybench.registry.imports._PATH", (str(tmp_path / "first"), str(tmp_path / "second")))
    Path("train.py").write_text("import helper\n")
    assert sorted(Path(file).parent.name for file in script_files("python train.py") if "helper" in file) == ["first"]


def test_a_script_that_changes_while_the_study_runs_is_noticed() -> None:
    asked = study("begin()\nfinish(1.0 + seed)\nopen('train.py', 'a').write('# edited\\n')")
    folder = StudyFolder(Path("results") / asked.name)
    scheduler, events = ScriptScheduler(LocalPool(1), folder, ()), list[Event]()
    with pytest.raises(
        UsageError, match=r"^train\.py, of python train\.py, changed while the study ran; the same command begins anew"
    ):
        events += scheduler.run(asked.runs())
    assert folder.count() == 0


def test_what_a_killed_study_left_running_is_taken_over() -> None:
    """The trial's record is there, the process that waited for it is not."""
    asked = study("begin()\nfinish(1.0 + seed)", seeds=1)
    (config,) = asked.runs()
    folder = StudyFolder(Path("results") / asked.name)
    done = run_script(ScriptJob(config, (), folder.path.resolve()))
    assert done.code == 0
    task = json.loads((done.attempt / "task.json").read_text())
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (done.attempt / "task.json").write_text(json.dumps({**task, "pid": int(gone.stdout)}))
    Path("train.py").write_text(Path("train.py").read_text())  # the same content
    events, _ = run(asked)
    assert [record.final("loss") for event in events for record in event.records] == [1.0]
    assert not any(event.worker.startswith("worker") for event in events)  # nothing was started


def processes_with(marker: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in path.read_bytes().decode("utf-8", "replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def until(condition: Any, seconds: float = 30.0) -> Any:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def test_a_time_limit_ends_what_the_script_has_started_too(tmp_path: Path) -> None:
    marker = f"marker-{os.getpid()}-{tmp_path.name}"
    child = f"[sys.executable, '-c', 'import time; time.sleep(99)', '{marker}']"
    body = f"import subprocess\nbegin()\nsubprocess.Popen({child})"
    run(study(body + "\ntime.sleep(99)", seeds=1), time_limit=2.0)
    until(lambda: not processes_with(marker))


def test_what_a_script_leaves_behind_when_it_is_done_is_ended(tmp_path: Path) -> None:
    marker = f"left-{os.getpid()}-{tmp_path.name}"
    child = f"[sys.executable, '-c', 'import time; time.sleep(99)', '{marker}']"
    events, folder = run(study(f"import subprocess\nbegin()\nsubprocess.Popen({child})\nfinish(1.0)", seeds=1))
    assert not troubles(events)
    assert folder.count() == 1
    until(lambda: not processes_with(marker), 10)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_an_interrupted_study_keeps_what_is_finished_and_leaves_nothing_running(how: int, tmp_path: Path) -> None:
    Path("train.py").write_text(
        "import time, torch, decaybench\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.PReLU())\n"
        "trial = decaybench.trial(model)\n"
        "optimizer = trial.optimizer(torch.optim.SGD, lr=0.1)\n"
        "model(torch.ones(1, 2)).sum().backward()\n"
        "optimizer.step()\n"
        "trial.log(0, loss=float(model[0].weight.sum().detach()) + 9)\n"
        "time.sleep(300 if trial.seed else 0)\n"
        "trial.finish()\n"
    )
    marker = f"--marker-{os.getpid()}-{tmp_path.name}"
    words = f"run --script 'python train.py {marker}' --strategy decay-all --weight-decay 0.1 --seeds 2 --name s"
    process = subprocess.Popen(
        [sys.executable, "-m", "decaybench", *shlex.split(words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    folder = StudyFolder(Path("results/s"))
    until(lambda: folder.count() == 1 and list(folder.path.glob("attempts/*/log.jsonl")), 60)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    if how == signal.SIGINT:
        assert b"1 of 2 runs are finished" in errors
    until(lambda: not processes_with(marker))
    assert [record.seed for record in folder.load_records()] == [0]


def test_the_study_file_comes_back_as_it_was(tmp_path: Path) -> None:
    asked = study("begin()", args={"size": ["a", "b"], "lr": [0.1]}, metric=["score:max"], launcher="nice -n 1")
    (tmp_path / "again.toml").write_text(to_toml(asked))
    again = read_study(str(tmp_path / "again.toml"), {})
    assert [run.run_id for run in again.runs()] == [run.run_id for run in asked.runs()]
    assert asked.runs()[0].script == "nice -n 1 train.py"
    events, _ = run(replace_launcher(asked))
    assert not [t for t in troubles(events) if "program" in t]


def replace_launcher(asked: ScriptStudy) -> ScriptStudy:
    """A launcher that is the interpreter itself."""
    return asked.model_copy(update={"launcher": sys.executable, "metric": []})


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--script", "python nothing.py"], "no word of it is a file in"),
        (["--script", "python 'train.py"], "it is no command line"),
        (["--script", ""], "at least 1 character"),
        (["--script", "python train.py", "--dataset", "digits"], "the script decides it itself; to vary an option"),
        (["--script", "python train.py", "--arg", "seed=1"], "seed is what the run has already"),
        (["--script", "python train.py", "--arg", "size"], "--arg 'size' is not key=value"),
        (["--script", "python train.py", "--metric", "score"], "nothing says whether less or more of it is better"),
        (["--script", "python train.py", "--minimize"], "add --metric NAME"),
        (["--script", "python train.py", "--minimize", "--maximize", "--metric", "x"], "exclude each other"),
        (["--script", "python train.py", "--until", "1"], "until needs a metric"),
        (["--script", "python train.py", "--executor", "cloud"], "Unknown value of --executor"),
        (["--script", "no-such-program train.py"], "there is no program 'no-such-program'"),
        (["--script", "python train.py", "--gpus-per-run", "64"], "this machine has "),
        (["--arg", "a=1"], "belongs to a study of a script"),
        (["--launcher", "torchrun"], "belongs to a study of a script"),
        (["--executor", "slurm", "--dataset", "synthetic"], "--executor slurm starts scripts"),
    ],
)
def test_bad_options_are_one_sentence(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("train.py").write_text(HEAD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, errors = call("run", *arguments, "--weight-decay", "0.1", "--name", "x")
    assert code == 2, errors
    assert said in errors
    assert "Traceback" not in errors


def test_a_decay_must_be_said() -> None:
    Path("train.py").write_text(HEAD)
    code, errors = call("run", "--script", "python train.py")
    assert code == 2
    assert "weight_decay" in errors


def test_gpus_are_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7,9")
    pool = local_pool(Options(gpus_per_run=2))
    assert pool.slots == 2
    asked = study("begin()\nfinish(1.0 + seed)\nprint(os.environ['CUDA_VISIBLE_DEVICES'])", seeds=2)
    folder = StudyFolder(Path("results/g"))
    list(ScriptScheduler(pool, folder, ()).run(asked.runs()))
    seen = {(folder.path / "output" / f"{config.run_id}.txt").read_text().strip() for config in asked.runs()}
    assert seen == {"3,5", "6,7"}


def config_of(asked: ScriptStudy) -> ScriptConfig:
    return asked.runs()[0]


@pytest.mark.slow
@pytest.mark.parametrize("where", [("ray", "--ray-address", "local"), ("slurm", "--slurm", "cluster=local")], ids=str)
def test_scripts_run_as_jobs_of_ray_and_of_submitit(where: tuple[str, ...], cli: Cli) -> None:
    Path("train.py").write_text(HEAD + "begin()\nfinish(1.0 + seed)")
    words = shlex.split("run --script 'python train.py' --strategy decay-all --weight-decay 0.1 --seeds 2 --name s")
    # Ray writes a token for its local clusters into the home folder, which would lock out clusters of other tests.
    home = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(Path.cwd()), "COLUMNS": "200"}
    done = cli(*words, "--workers", "2", "--executor", *where, env=home)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(cli("report", "results/s", "--format", "json").stdout)
    assert (row["seeds"], row["loss"]) == (2, 1.5)


def test_slurm_that_is_not_there_is_said() -> None:
    from decaybench.execution.slurm import script_pool

    with pytest.raises(UsageError, match="there is no Slurm here"):
        script_pool(Options())


def test_a_record_of_another_run_is_not_taken() -> None:
    asked = study("begin()\nfinish(1.0)", seeds=1)
    config = config_of(asked)
    other = config.model_copy(update={"seed": 5, "strategy": Spec.make("strategy", "no-decay", {})})
    record = Record(other.run_id, other.model_dump(), {}, None, {"loss": [1.0]}, metrics={"loss": "lower"})
    Path("other.json").write_bytes(dumps(replace(record)))
    here = Path("other.json").resolve()
    asked = study(f"begin()\nimport shutil; shutil.copy({str(here)!r}, folder + '/outcome.json')", seeds=1)
    events, folder = run(asked)
    assert "it left a record that cannot be read: its configuration is not the one of its run" in troubles(events)[0]
    assert folder.count() == 0


@pytest.mark.slow
def test_the_five_minute_path(cli: Cli, tmp_path: Path) -> None:
    """The page of the manual, as it stands: two strategies, two decays, five seeds, and the page."""
    page = (REPOSITORY / "decaybench" / "docs" / "own-training.md").read_text("utf-8")
    code = page.split("```python train.py\n")[1].split("```")[0]
    added = [line for line in code.splitlines() if "decaybench" in line or "trial" in line]
    assert len(added) <= 6, added
    assert len(code.splitlines()) - len(added) <= 60
    (tmp_path / "train.py").write_text(code)
    plain = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, env={**os.environ})
    assert plain.returncode == 0, plain.stderr
    commands = page.split("```sh\n")[1].split("```")[0].splitlines()
    for command in commands:
        done = cli(*shlex.split(command)[1:])
        assert done.returncode == 0, done.stderr
    rows = json.loads(cli("report", "--format", "json").stdout)
    assert {(row["strategy"], row["weight_decay"], row["seeds"]) for row in rows} == {
        (strategy, decay, 5) for strategy in ("decay-all", "exclude-alpha") for decay in (0.1, 1.0)
    }
    assert all(row["test_accuracy_speaks_about"] == "new test examples" for row in rows)
    assert (tmp_path / "report.html").stat().st_size > 20_000
    own = page.split("```toml own.toml\n")[1].split("```")[0]
    (tmp_path / "own.toml").write_text(own)
    done = cli("run", "own.toml", "--dry-run")
    assert "40 runs: 0 finished" in done.stdout
