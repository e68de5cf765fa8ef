"""The command ``decaybench run``, which trains a study and prints its table."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decaybench.analysis.comparison import ComparisonSettings, summarize
from decaybench.analysis.frame import runs_frame
from decaybench.analysis.stopping import next_runs
from decaybench.cli.interrupt import EXIT, InterruptHandler
from decaybench.cli.live import Live
from decaybench.cli.output import write_report
from decaybench.console import INTERRUPTED, check_choice, check_device, guarded, say
from decaybench.errors import DecaybenchError, UsageError
from decaybench.execution.processes import start_forkserver
from decaybench.execution.progress import Progress
from decaybench.registry import EXECUTORS, FAMILIES
from decaybench.report.formats import Report
from decaybench.results.store import StudyFolder
from decaybench.study.config import RunConfig
from decaybench.study.study import COMPARED, Study, read_study, to_fields, to_toml

if TYPE_CHECKING:
    from decaybench.execution.scheduler import Event, Scheduler

BASELINE = "decay-all"
Many = list[str] | None  # read by the study itself, which names the field, the value and what is allowed


def _option(help: str, metavar: str = "NAME") -> Any:
    return typer.Option(help=help, metavar=metavar)


def _names(family: str, example: str = "") -> Any:
    """Makes an option that takes names of a family of the registry."""
    return _option(", ".join(FAMILIES[family]) + (f"; with options: {example}" if example else ""))


@dataclass(frozen=True)
class RunPlan:
    """A study to compute, and how."""

    asked: Study
    folder: StudyFolder
    runs: list[RunConfig]
    missing: list[RunConfig]
    finished: dict[str, str]  # fingerprints of the data of finished runs
    fresh: bool
    machine: dict[str, Any]  # the fields of `decaybench.execution.options.ExecutionOptions`, which imports torch
    fail_fast: bool = False
    debug: bool = False


@guarded
def run(
    study: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="A built-in study or a TOML file; without it, digits."),
    ] = None,
    dataset: Annotated[Many, _names("dataset")] = None,
    network: Annotated[Many, _names("network")] = None,
    activation: Annotated[Many, _names("activation", "kaf,D=8")] = None,
    strategy: Annotated[Many, _names("strategy")] = None,
    penalty: Annotated[Many, _option("Of loss-penalty: l1, l2, elastic-net.")] = None,
    alpha_optimizer: Annotated[Many, _option("Of two-optimizers: the second one's kind.")] = None,
    alpha_lr: Annotated[Many, _option("Of two-optimizers: the second one's learning rate.", "RATE")] = None,
    seeds: Annotated[str | None, _option("Number of seeds: 0 … N − 1.", "N")] = None,
    until: Annotated[
        str | None, _option("Add seeds, up to --seeds, until differences are known to this.", "POINTS")
    ] = None,
    primary: Annotated[
        str | None, _option("The contrast asked for, not corrected for others: exclude-alpha, or exclude-alpha:loss.")
    ] = None,
    optimizer: Annotated[Many, _names("optimizer", "sgd,momentum=0")] = None,
    schedule: Annotated[Many, _names("schedule", "cosine,warmup=1")] = None,
    lr: Annotated[Many, _option("Learning rate; without it, the optimizer's default.", "RATE")] = None,
    weight_decay: Annotated[Many, _option("λ of the strategy.", "DECAY")] = None,
    epochs: Annotated[Many, _option("Passes over the training part.", "N")] = None,
    batch_size: Annotated[Many, _option("Images per step.", "N")] = None,
    clip_norm: Annotated[Many, _option("Clip the gradient's norm, joint over all optimizers; or none.", "NORM")] = None,
    augment: Annotated[Many, _option("none, flip, crop, crop-flip")] = None,
    validation: Annotated[Many, _option("Share of the training part held out.", "SHARE")] = None,
    train_limit: Annotated[Many, _option("Use only so many training images; or none.", "N")] = None,
    split: Annotated[Many, _option("fixed, or seed: each seed divides the whole data set anew.")] = None,
    precision: Annotated[Many, _option("float32, tf32, bfloat16")] = None,
    device: Annotated[str, _option("auto, cpu, cuda, cuda:1, mps")] = "auto",
    executor: Annotated[str, _option(", ".join(("auto", *EXECUTORS)))] = "auto",
    workers: Annotated[str, _option("Processes; auto is one per core.", "N|auto")] = "auto",
    checkpoint_every: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Between checkpoints.")] = 60.0,
    patience: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Then a silent worker is hung.")] = 600.0,
    ray_address: Annotated[str, _option("Of the Ray cluster.", "auto|ADDRESS")] = "auto",
    ray_gpus: Annotated[float, typer.Option(min=0.0, metavar="N", help="GPUs for each job, 0.25 say.")] = 0.0,
    results: Annotated[Path, _option("Folder of all studies.", "DIR")] = Path("results"),
    name: Annotated[str | None, _option("Folder of this study in it.")] = None,
    data_dir: Annotated[Path | None, _option("Where data sets are, or are downloaded to.", "DIR")] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="End the study with the first run that fails.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete this study's results first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train identical networks under several strategies and tabulate what changed.

    What is compared and how it is trained may be given several times: a list, and the study is the grid.

    Runs that are finished are kept: the same command again computes only what is missing.
    """
    given = dict(locals())
    overrides = {key: given[key] for key in Study.model_fields if given.get(key) is not None}
    asked = read_study(study, overrides)
    folder = StudyFolder(results / asked.name)
    runs = asked.runs()
    check_choice("executor", executor, ("auto", *EXECUTORS))
    _check(asked, data_dir, workers, device)
    _check_folder(folder, asked, runs, fresh)
    ids = {run.run_id for run in runs}
    if not (dry_run or fresh):
        for sentence in folder.set_aside_damaged(ids):
            say(f"Warning: {sentence}")
        _take_over(folder, results, runs)
    loaded = folder.load(ids, detail="summary")
    for problem in loaded.problems:
        say(f"Warning: {problem}")
    frame = runs_frame(loaded)
    finished = {} if fresh else dict(zip(frame["run_id"], frame.get("data_fingerprint", ()), strict=False))
    _check_own_data(runs, finished, folder)
    missing = [r for r in runs if r.run_id not in finished and (fresh or r.run_id not in loaded.newer)]
    if asked.until is not None and not fresh and not next_runs(runs, frame, asked.until / 100, BASELINE):
        missing = []  # everything is known well enough
    if dry_run:
        _print_dry_run(runs, missing, folder)
        return
    if fresh:
        _confirm_fresh(folder, yes)
    machine = {k: given[k] for k in ("device", "workers", "checkpoint_every", "patience", "ray_address", "ray_gpus")}
    machine["executor"] = executor
    plan = RunPlan(asked, folder, runs, missing, finished, fresh, machine, fail_fast, debug)
    whole = _compute(plan)
    found = folder.load(ids, detail="summary")
    if not len(found):
        raise DecaybenchError("No run was finished, so there is nothing to report.")
    whole &= asked.until is not None or ids <= found.run_ids() | found.newer
    for problem in found.problems:
        say(f"Warning: {problem}")
    settings = ComparisonSettings(BASELINE, anytime=asked.until is not None, primary=asked.primary)
    write_report(Report(summarize(runs_frame(found), settings), settings, name=asked.name))
    say(f"More: decaybench report {shlex.quote(str(folder.path))} --layers")
    if not whole:
        raise typer.Exit(1)


def _check(asked: Study, data_dir: Path | None, workers: str, device: str) -> None:
    """Checks the options that are no field of a study."""
    if asked.until is not None and not any(s.name == BASELINE for s in asked.strategy):
        raise UsageError(f"--until: differences are those to {BASELINE}, which is not among this study's strategies.")
    if data_dir is not None:
        if not data_dir.is_dir():
            what = "it is no folder" if data_dir.exists() else "there is no such folder"
            raise UsageError(f"--data-dir {data_dir}: {what}.")
        os.environ["DECAYBENCH_DATA"] = str(data_dir)
    if not re.fullmatch(r"auto|[1-9]\d{0,3}", workers):
        raise UsageError(f"--workers {workers!r}: allowed are auto and whole numbers from 1 on.")
    check_device(device)


def _check_folder(folder: StudyFolder, asked: Study, runs: list[RunConfig], fresh: bool) -> None:
    """Notices that the folder holds another study.

    Raises:
        UsageError: When the two have no run in common.
    """
    if fresh or not folder.study_file.exists() or not folder.count():
        return
    try:
        there = read_study(str(folder.study_file), {})
        other = {run.run_id for run in there.runs()}
    except DecaybenchError as error:  # damaged, of another version, or code that it names has moved
        say(f"Note: {folder.study_file} cannot be read and is written anew: {error}")
        return
    ids = {run.run_id for run in runs}
    fields = [key for key in COMPARED if repr(to_fields(there).get(key)) != repr(to_fields(asked).get(key))]
    if not fields or other <= ids:
        return
    if not other & ids:
        raise UsageError(
            f"{folder.path} holds another study, which differs in {', '.join(fields)}; give --name for another folder, "
            "or --fresh to delete what is there."
        )
    say(f"Note: {folder.path} held a study that differs in {', '.join(fields)}; its other runs stay there.")


def _data_now(run: RunConfig, known: dict[str, str]) -> str:
    """Computes the fingerprint of the data of a run, whose data set is the user's own code."""
    key = repr(run.data_key())
    if key not in known:
        import torch

        from decaybench.training.data import load

        with redirect_stdout(sys.stderr):
            known[key] = load(run, torch.device("cpu")).fingerprint
    return known[key]


def _check_own_data(runs: list[RunConfig], finished: dict[str, str], folder: StudyFolder) -> None:
    """Checks that the data of the user's own code are those that finished runs were trained on.

    Raises:
        UsageError: When they are not.
    """
    known: dict[str, str] = {}
    for run in runs:
        if run.dataset.source and run.run_id in finished and finished[run.run_id] != _data_now(run, known):
            raise folder.changed_data(run.dataset.label, finished[run.run_id], _data_now(run, known))


def _take_over(folder: StudyFolder, results: Path, runs: list[RunConfig]) -> None:
    """Copies records of these runs from other studies below the same folder: a run is the same wherever it was done.

    Not those whose data are of the user's own code and have changed since.
    """
    known: dict[str, str] = {}
    by_id = {run.run_id: run for run in runs}
    wanted = {run_id for run_id in by_id if not folder.has(run_id)}
    for path in sorted(results.glob("*")):
        other = StudyFolder(path)
        if not wanted or path == folder.path or not any(other.has(run_id) for run_id in wanted):
            continue
        found = [
            record
            for record in other.load_records(wanted)
            if not (run := by_id[record.run_id]).dataset.source or record.fingerprints["data"] == _data_now(run, known)
        ]
        for record in found:
            folder.write(record)
        wanted -= {record.run_id for record in found}
        if found:
            say(f"{len(found)} runs are taken over from {path}.")


def _compute(plan: RunPlan) -> bool:
    """Trains what is missing, with progress on stderr, and tells whether every run was finished."""
    asked, folder, missing = plan.asked, plan.folder, plan.missing
    if not missing:
        folder.write_study(to_toml(asked))
        return True
    cells = len({run.cell_id for run in plan.runs})
    progress = Progress(asked.name, cells, len(plan.runs), before=len(plan.runs) - len(missing))
    live = Live(progress, folder, plan.debug)

    def farewell() -> str:
        again = ["decaybench", *(word for word in sys.argv[1:] if word not in ("--fresh", "--yes"))]
        return (
            f"Interrupted: {progress.before + progress.finished} of {progress.total} runs are finished "
            f"and kept in {folder.path}. Go on with: {shlex.join(again)}"
        )

    try:
        with (
            InterruptHandler(farewell),
            live,
            redirect_stdout(sys.stderr),
        ):
            live.message("Starting: importing torch, loading the data …")
            if plan.machine["executor"] in ("auto", "processes"):
                start_forkserver()
            from decaybench.execution.options import ExecutionOptions
            from decaybench.execution.scheduler import make_scheduler

            study = make_scheduler(folder, ExecutionOptions(**plan.machine), missing, plan.runs)
            study.check(missing, plan.finished)
            if plan.fresh:  # from here on it is known to work
                folder.clear()
            folder.sweep()
            folder.write_study(to_toml(asked))
            live.begin()
            for event in study.run(missing) if asked.until is None else _until(study, plan, asked.until / 100):
                live.on(event)
                if event.failed is not None and plan.fail_fast:
                    raise DecaybenchError(
                        "--fail-fast: the study ends with the first run that failed; the others wait."
                    )
    except KeyboardInterrupt:
        say(farewell())
        EXIT(INTERRUPTED)  # at once: taking torch and the workers' server down in order takes a second
    return not progress.failed


def _until(study: "Scheduler", plan: RunPlan, until: float) -> Iterator["Event"]:
    """Yields events while adding seeds until every difference is known."""
    failed: set[str] = set()
    while True:
        runs = [run for run in plan.runs if run.run_id not in failed]
        finished = runs_frame(plan.folder.load((run.run_id for run in runs), detail="summary"))
        batch = next_runs(runs, finished, until, BASELINE)
        if not batch:
            return
        for event in study.run(batch):
            failed |= {event.failed.run_id} if event.failed else set()
            yield event


def _confirm_fresh(folder: StudyFolder, yes: bool) -> None:
    """Says what ``--fresh`` will delete, and asks for confirmation."""
    count = folder.count()
    if not count:
        return
    say(f"--fresh deletes {count} finished runs in {folder.path}.")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--fresh asks before it deletes, and there is no terminal to ask on: add --yes.")
        if not typer.confirm("Delete them?", err=True):
            raise typer.Exit(1)


def _print_dry_run(runs: list[RunConfig], missing: list[RunConfig], folder: StudyFolder) -> None:
    """Prints what would run, one line per cell."""
    still = {r.run_id for r in missing}
    typer.echo(f"{len(runs)} runs: {len(runs) - len(still)} finished in {folder.path}, {len(still)} to compute")
    for cell_id in dict.fromkeys(r.cell_id for r in runs):
        cell = [r for r in runs if r.cell_id == cell_id]
        first = cell[0]
        parts = [first.dataset, first.network, first.activation, first.strategy, first.optimizer]
        text = " ".join(spec.label for spec in parts)
        todo = sum(r.run_id in still for r in cell)
        precision = "" if first.precision == "float32" else f" precision={first.precision}"
        typer.echo(
            f"{text} lr={first.lr:g} weight_decay={first.weight_decay:g} epochs={first.epochs}{precision}: "
            f"{len(cell)} seeds, {todo} to compute"
        )
