"""The command ``decaybench run``, which trains a study and prints its table."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from decaybench.analysis.comparison import ComparisonSettings, summarize
from decaybench.analysis.frame import recorded_columns, recorded_metrics, runs_frame
from decaybench.analysis.stopping import next_runs
from decaybench.cli.interrupt import EXIT, InterruptHandler
from decaybench.cli.live import Live
from decaybench.cli.options import parse_pair
from decaybench.cli.output import write_report
from decaybench.cli.study_folder import check_folder, check_own_data, confirm_fresh, take_over
from decaybench.cli.tensorboard import Board
from decaybench.console import INTERRUPTED, check_choice, check_device, guarded, say
from decaybench.errors import DecaybenchError, UsageError
from decaybench.execution.processes import start_forkserver
from decaybench.execution.progress import Progress
from decaybench.registry import EXECUTORS, FAMILIES
from decaybench.registry.metrics import named
from decaybench.report.formats import Report
from decaybench.results.store import StudyFolder
from decaybench.study.config import AnyConfig
from decaybench.study.study import AnyStudy, ScriptStudy, Study, read_study, to_toml

if TYPE_CHECKING:
    from decaybench.execution.event import Event

BASELINE = "decay-all"
Many = list[str] | None  # read by the study itself, which names the field, the value and what is allowed


def _option(help: str, metavar: str = "NAME") -> Any:
    return typer.Option(help=help, metavar=metavar)


def _names(family: str, example: str = "") -> Any:
    """Makes an option that takes names of a family of the registry."""
    return _option(", ".join(FAMILIES[family]) + (f"; with options: {example}" if example else ""))


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
    metric: Annotated[
        Many, _option("What is compared, the first one first, with its direction if need be: score:max.")
    ] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less is better, for metrics of no known name.")] = False,
    maximize: Annotated[bool, typer.Option("--maximize", help="More is better, for metrics of no known name.")] = False,
    script: Annotated[
        str | None, _option("Your own training script, as you start it: 'python train.py --size small'.", "COMMAND")
    ] = None,
    arg: Annotated[Many, _option("An option of the script that varies; several values: give it again.", "K=V")] = None,
    launcher: Annotated[str | None, _option("Instead of python: 'torchrun --nproc-per-node 8'.", "COMMAND")] = None,
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
    loss: Annotated[Many, _names("loss", "cross-entropy,smoothing=0.1")] = None,
    device: Annotated[str, _option("auto, cpu, cuda, cuda:1, mps")] = "auto",
    executor: Annotated[str, _option(", ".join(("auto", *EXECUTORS)))] = "auto",
    workers: Annotated[str, _option("Processes; auto is one per core, one for a script.", "N|auto")] = "auto",
    gpus_per_run: Annotated[int, typer.Option(min=0, metavar="N", help="GPUs that each run of a script sees.")] = 0,
    time_limit: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Then a run of a script is ended.")
    ] = None,
    slurm: Annotated[Many, _option("Of Slurm, by submitit's names: slurm_partition=gpu.", "K=V")] = None,
    checkpoint_every: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Between checkpoints.")] = 60.0,
    patience: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Then a silent worker is hung.")] = 600.0,
    ray_address: Annotated[str, _option("Of the Ray cluster.", "auto|ADDRESS")] = "auto",
    ray_gpus: Annotated[float, typer.Option(min=0.0, metavar="N", help="GPUs for each job, 0.25 say.")] = 0.0,
    results: Annotated[Path, _option("Folder of all studies.", "DIR")] = Path("results"),
    name: Annotated[str | None, _option("Folder of this study in it.")] = None,
    data_dir: Annotated[Path | None, _option("Where data sets are, or are downloaded to.", "DIR")] = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Write the weights of each run, too (safetensors).")
    ] = False,
    tensorboard: Annotated[Path | None, _option("Write what epochs give for TensorBoard, too.", "DIR")] = None,
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
    asked = read_study(study, _overrides(given))
    folder = StudyFolder(results / asked.name)
    runs = asked.runs()
    check_choice("executor", executor, ("auto", *EXECUTORS))
    _check(asked, data_dir, workers, device)
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
        confirm_fresh(folder, yes)
    plan = RunPlan(asked, folder, runs, missing, finished, fresh, given, fail_fast, debug)
    whole = _compute(plan)
    whole &= _report(plan, ids)
    if not whole:
        raise typer.Exit(1)


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
    say(f"More: decaybench report {shlex.quote(str(folder.path))} --layers")
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


def _compute(plan: RunPlan) -> bool:
    """Trains what is missing, with progress on stderr, and tells whether every run was finished."""
    asked, folder, missing = plan.asked, plan.folder, plan.missing
    if not missing:
        folder.write_study(to_toml(asked))
        return True
    cells = len({run.cell_id for run in plan.runs})
    before = len(plan.runs) - len(missing)
    progress = Progress(asked.name, cells, len(plan.runs), before, watched=_watched(asked))
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
        typer.echo(f"{cell[0].name} {cell[0].details}: {len(cell)} seeds, {todo} to compute")
