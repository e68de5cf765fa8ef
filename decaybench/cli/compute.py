"""Computes a study: what is missing of it is trained, with progress on stderr, and its table is printed."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from decaybench.analysis.comparison import ComparisonSettings, summarize
from decaybench.analysis.frame import recorded_columns, recorded_metrics, runs_frame
from decaybench.analysis.stopping import next_runs
from decaybench.cli.interrupt import InterruptHandler
from decaybench.cli.live import Live
from decaybench.cli.options import parse_pair
from decaybench.cli.output import write_report
from decaybench.cli.study_folder import check_folder, check_own_data, confirm_fresh, take_over
from decaybench.cli.tensorboard import Board
from decaybench.console import INTERRUPTED, check_choice, check_device, say
from decaybench.errors import DecaybenchError, UsageError
from decaybench.execution.processes import start_forkserver
from decaybench.execution.progress import Progress
from decaybench.registry import EXECUTORS, FAMILIES
from decaybench.registry.metrics import named
from decaybench.registry.user_code import EXIT
from decaybench.report.formats import Report
from decaybench.results.store import StudyFolder
from decaybench.study.config import AnyConfig
from decaybench.study.study import AnyStudy, ScriptStudy, Study, builtin_studies, read_study, to_toml

if TYPE_CHECKING:
    from decaybench.execution.event import Event

BASELINE = "decay-all"


class Engine(Protocol):
    """What computes the runs of a study."""

    def check(self, missing: Sequence[Any], finished: Mapping[str, str]) -> None: ...
    def run(self, missing: Sequence[Any]) -> "Iterator[Event]": ...


@dataclass(frozen=True)
class RunPlan:
    """A study to compute, and how."""

    asked: AnyStudy
    folder: StudyFolder
    runs: Sequence[AnyConfig]
    missing: Sequence[AnyConfig]
    finished: dict[str, str]  # fingerprints of the data of finished runs
    fresh: bool
    machine: dict[str, Any]  # the options by their names
    fail_fast: bool = False
    debug: bool = False


def compute(given: Mapping[str, Any]) -> None:
    """Computes what the command ``decaybench run`` was given, and prints its table.

    Args:
        given: The values of its options by their names.

    Raises:
        DecaybenchError: When an option cannot be what it is, or nothing was finished.
        typer.Exit: With 1 when a run failed.
    """
    study, results, executor, fresh, dry_run = (
        given[key] for key in ("study", "results", "executor", "fresh", "dry_run")
    )
    if given["quiet"] and given["verbose"]:
        raise UsageError("--quiet and --verbose exclude each other.")
    asked = _asked(study, given)
    folder = StudyFolder(results / asked.name)
    runs = asked.runs()
    check_choice("executor", executor, ("auto", *EXECUTORS))
    _check(asked, given["data_dir"], given["workers"], given["device"])
    _check_use(asked, given)
    check_folder(folder, asked, runs, fresh)
    ids = {run.run_id for run in runs}
    if not (dry_run or fresh):
        for sentence in folder.set_aside_damaged(ids):
            say(f"Warning: {sentence}")
        take_over(folder, results, runs)
    loaded = folder.load(ids, detail="summary")
    for problem in loaded.problems:
        say(f"Warning: {problem}")
    frame = runs_frame(loaded)
    finished = {} if fresh else dict(zip(frame["run_id"], frame.get("data_fingerprint", ()), strict=False))
    check_own_data(runs, finished, folder)
    missing = [r for r in runs if r.run_id not in finished and (fresh or r.run_id not in loaded.newer)]
    if (
        asked.until is not None
        and not fresh
        and not next_runs(runs, frame, asked.until, asked.differences_in, BASELINE)
    ):
        missing = []  # everything is known well enough
    if dry_run:
        _print_dry_run(runs, missing, folder)
        return
    if fresh:
        confirm_fresh(folder, given["yes"])
    plan = RunPlan(asked, folder, runs, missing, finished, fresh, dict(given), given["fail_fast"], given["debug"])
    whole = _compute(plan)
    whole &= _report(plan, ids)
    if not whole:
        raise typer.Exit(1)


def _asked(study: str | None, given: Mapping[str, Any]) -> AnyStudy:
    """Reads the study; what is wrong with an option is said in the words in which it was typed."""
    for family, entries in FAMILIES.items():
        if study in entries and study not in builtin_studies() and given.get(family):
            typed = " ".join(f"--{family} {value}" for value in [*given[family], study])
            raise UsageError(f"{study} is a name for --{family}, which takes one at a time; repeat it: {typed}.")
    try:
        return read_study(study, _overrides(given))
    except UsageError as error:
        field = re.match(r"(?:strategy [\w-]+, option )?(\w+) = ", str(error))
        if field is None or given.get(field[1]) is None:
            raise
        raise UsageError(f"--{field[1].replace('_', '-')} " + str(error)[field.end() :]) from error


def _overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a study that options give."""
    fields = (*Study.model_fields, *ScriptStudy.model_fields)
    overrides = {key: given[key] for key in fields if given.get(key) is not None}
    if given["minimize"] and given["maximize"]:
        raise UsageError("--minimize and --maximize exclude each other; of several metrics, name each: --metric a:min.")
    if given["minimize"] or given["maximize"]:
        way = "min" if given["minimize"] else "max"
        if not given["metric"]:
            raise UsageError(f"--{way}imize says it of a metric: add --metric NAME.")
        overrides["metric"] = [name if ":" in name else f"{name}:{way}" for name in given["metric"]]
    if given["arg"]:
        args: dict[str, list[Any]] = {}
        for text in given["arg"]:
            key, _ = parse_pair(text, "--arg")
            value = text.partition("=")[2]  # as it was typed, for the script; true and false make a flag
            args.setdefault(key, []).append({"true": True, "false": False}.get(value, value))
        overrides["args"] = args
    return overrides


def _report(plan: RunPlan, ids: set[str]) -> bool:
    """Prints the table of what was found, and tells whether every run that was asked for is there."""
    asked, folder = plan.asked, plan.folder
    found = folder.load(ids, detail="summary")
    if not len(found):
        raise DecaybenchError("No run was finished, so there is nothing to report.")
    for problem in found.problems:
        say(f"Warning: {problem}")
    frame = runs_frame(found)
    metrics = named(asked.metric, recorded_metrics(frame), recorded_columns(frame)) or None
    settings = ComparisonSettings(BASELINE, metrics, anytime=asked.until is not None, primary=asked.primary)
    write_report(Report(summarize(frame, settings), settings, name=asked.name))
    if not plan.machine["quiet"]:
        say(f"More: decaybench report {shlex.quote(str(folder.path))} --output report.html")
    return asked.until is not None or ids <= found.run_ids() | found.newer


def _check(asked: AnyStudy, data_dir: Path | None, workers: str, device: str) -> None:
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


def _check_use(asked: AnyStudy, given: Mapping[str, Any]) -> None:
    """Refuses options that would do nothing."""
    scripts = [key for key in ("gpus_per_run", "time_limit", "slurm") if given[key]]
    if scripts and not isinstance(asked, ScriptStudy):
        raise UsageError(f"--{scripts[0].replace('_', '-')} is for --script; it does nothing for this study.")
    if given["ray_gpus"] and given["executor"] != "ray":
        raise UsageError(f"--ray-gpus is for --executor ray; it does nothing for {given['executor']}.")
    if given["slurm"] and given["executor"] != "slurm":
        raise UsageError(f"--slurm is for --executor slurm; it does nothing for {given['executor']}.")


def _compute(plan: RunPlan) -> bool:
    """Trains what is missing, with progress on stderr, and tells whether every run was finished."""
    asked, folder, missing = plan.asked, plan.folder, plan.missing
    if not missing:
        folder.write_study(to_toml(asked))
        return True
    cells = len({run.cell_id for run in plan.runs})
    before = len(plan.runs) - len(missing)
    progress = Progress(asked.name, cells, len(plan.runs), before, watched=_watched(asked))
    live = Live(progress, folder, plan.debug, plan.machine["verbose"] - plan.machine["quiet"])

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
            closing(Board(plan.machine["tensorboard"])) as board,
        ):
            script = isinstance(asked, ScriptStudy)
            live.message("Starting the script …" if script else "Starting: importing torch, loading the data …")
            study = _engine(plan)
            study.check(missing, plan.finished)
            if plan.fresh:  # from here on it is known to work
                folder.clear()
            folder.sweep()
            folder.write_study(to_toml(asked))
            live.begin()
            for event in study.run(missing) if asked.until is None else _until(study, plan, asked.until):
                live.on(event)
                board.on(event)
                if event.failed is not None and plan.fail_fast:
                    raise DecaybenchError(
                        "--fail-fast: the study ends with the first run that failed; the others wait."
                    )
    except KeyboardInterrupt:
        say(farewell())
        EXIT(INTERRUPTED)  # at once: taking torch and the workers' server down in order takes a second
    return not progress.failed


def _watched(asked: AnyStudy) -> str:
    """Returns the metric by which progress is shown: of what is trained here, that of the validation part."""
    first = asked.differences_in
    name = first.name if isinstance(asked, ScriptStudy) else first.name.replace("test_", "validation_", 1)
    return f"{name}:{first.direction}"


def _engine(plan: RunPlan) -> Engine:
    """Builds what computes the runs."""
    if isinstance(plan.asked, ScriptStudy):
        from decaybench.execution.scripts import ScriptOptions, make_script_scheduler

        chosen = {k: plan.machine[k] for k in ("executor", "workers", "gpus_per_run", "time_limit", "ray_address")}
        slurm = dict(parse_pair(text, "--slurm") for text in plan.machine["slurm"] or ())
        return make_script_scheduler(plan.folder, ScriptOptions(**chosen, slurm=slurm), plan.asked.metric)
    if plan.machine["executor"] in ("auto", "processes"):
        start_forkserver()
    from decaybench.execution.options import ExecutionOptions
    from decaybench.execution.scheduler import make_scheduler

    names = ("device", "executor", "workers", "checkpoint_every", "patience", "ray_address", "ray_gpus", "keep_weights")
    options = ExecutionOptions(**{name: plan.machine[name] for name in names})
    return make_scheduler(plan.folder, options, plan.missing, plan.runs)  # type: ignore[arg-type,return-value]


def _until(study: Engine, plan: RunPlan, until: float) -> Iterator["Event"]:
    """Yields events while adding seeds until every difference is known."""
    failed: set[str] = set()
    while True:
        runs = [run for run in plan.runs if run.run_id not in failed]
        finished = runs_frame(plan.folder.load((run.run_id for run in runs), detail="summary"))
        batch = next_runs(runs, finished, until, plan.asked.differences_in, BASELINE)
        if not batch:
            return
        for event in study.run(batch):
            failed |= {event.failed.run_id} if event.failed else set()
            yield event


def _print_dry_run(runs: Sequence[AnyConfig], missing: Sequence[AnyConfig], folder: StudyFolder) -> None:
    """Prints what would run, one line per cell."""
    still = {r.run_id for r in missing}
    typer.echo(f"{len(runs)} runs: {len(runs) - len(still)} finished in {folder.path}, {len(still)} to compute")
    for cell_id in dict.fromkeys(r.cell_id for r in runs):
        cell = [r for r in runs if r.cell_id == cell_id]
        todo = sum(r.run_id in still for r in cell)
        typer.echo(f"{cell[0].name} {cell[0].details}: {len(cell)} seed{'s' * (len(cell) > 1)}, {todo} to compute")
