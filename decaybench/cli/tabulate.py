"""Reports a study: tabulates and draws what it found."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from decaybench.analysis.comparison import ComparisonSettings, summarize
from decaybench.analysis.epochs import epochs_frame
from decaybench.analysis.frame import config_of, recorded_columns, recorded_metrics, runs_frame
from decaybench.analysis.stopping import next_runs
from decaybench.cli.output import check_files, write_content, write_report
from decaybench.console import check_choice, say, working
from decaybench.errors import DecaybenchError, UsageError, unknown
from decaybench.registry import STRATEGIES
from decaybench.registry.hashing import config_digest
from decaybench.registry.imports import is_target
from decaybench.registry.metrics import named, reported
from decaybench.report.formats import FIGURE_NAMES, FORMATS, Report, format_for
from decaybench.report.numbers import csv_rows
from decaybench.results.store import Loaded, StudyFolder, find_study_folder
from decaybench.study.config import AnyConfig
from decaybench.study.study import check_primary, plain_fields, read_study

Detail = Literal["summary", "figures"]
PICTURES = ("png", "svg", "pdf")
ONLY_FOR = {  # what each option is for
    **dict.fromkeys(("figure", "figure_width", "font_size"), PICTURES),
    "column": ("latex",),
    "wide": ("table",),
    "layers": ("table", "markdown", "csv", "json"),
}
POLL_SECONDS = 2.0  # seconds between two looks at a study that runs


def tabulate(given: Mapping[str, Any]) -> None:
    """Reports what the command ``decaybench report`` was given.

    Args:
        given: The values of its options by their names.

    Raises:
        DecaybenchError: When an option cannot be what it is, or there is nothing to report.
    """
    directory, output, figure, plan, epochs = (
        given[key] for key in ("directory", "output", "figure", "plan", "epochs")
    )
    if epochs and output is not None and given["format"] is None and output.suffix.lower() != ".csv":
        raise UsageError(f"--epochs writes CSV: give a file that ends in .csv, not {output}.")
    format = format_for("csv" if epochs and given["format"] is None else given["format"], output)
    detail: Detail = "figures" if FORMATS[format].needs_curves else "summary"
    check_choice("figure", figure or FIGURE_NAMES[0], FIGURE_NAMES)
    check_files(format, output)
    for option, formats in ONLY_FOR.items():
        if given[option] and format not in formats:
            name = f"--{option.replace('_', '-')}"
            raise UsageError(f"{name} is for --format {', '.join(formats)}; it does nothing for {format}.")
    folder = find_study_folder(directory)
    if epochs:
        _write_epochs(folder, given, format)
        return
    if directory is None:
        say(f"Reporting {folder.path}.")
    if plan is not None and format not in ("table", "html"):
        raise UsageError(f"--plan is shown by --format table and html, not by {format}.")
    wanted = Wanted(*(given[key] for key in Wanted._fields))
    look = {key: given[key] for key in ("layers", "figure", "wide", "font_size") if given[key] is not None}
    look |= {"columns": given["column"] or ()} | ({"width": given["figure_width"]} if given["figure_width"] else {})
    with working(f"Reading {folder.path} …"):
        loaded = folder.load(detail=detail)
    while waiting := _unfinished(folder, loaded):
        if not given["follow"]:
            loaded.problems.append(waiting)
            break
        if len(loaded):
            _write(folder, loaded, wanted, format, output, look, given["everything"])
        say(waiting)
        loaded = _more(folder, len(loaded), detail)
    if not len(loaded):
        raise DecaybenchError(" ".join([*loaded.problems, f"{folder.path} holds no finished run."]))
    _write(folder, loaded, wanted, format, output, look, given["everything"])


def _write_epochs(folder: StudyFolder, given: Mapping[str, Any], format: str) -> None:
    """Writes what was recorded of each epoch as CSV."""
    if format != "csv":
        raise UsageError(f"--epochs writes CSV, not {format}.")
    beside = [key for key in ("baseline", "metric", "margin", "primary", "layers", "follow") if given[key]]
    if beside:
        raise UsageError(f"--epochs writes what runs recorded; --{beside[0]} has no meaning for it.")
    write_content(csv_rows(epochs_frame(folder.load_records())), given["output"])


def _strategies(runs: pd.DataFrame) -> list[str]:
    """Returns the names of all strategies that there are, those of the runs first."""
    configs = runs.drop_duplicates("cell_id")["config"].map(config_of)
    return list(dict.fromkeys([*(config["strategy"]["name"] for config in configs), *STRATEGIES]))


def _is_shown(wanted: "Wanted", names: Sequence[str]) -> bool:
    """Tells whether the primary contrast names a strategy of the runs."""
    return any(name in names for name in ((wanted.primary or ""), (wanted.primary or "").rpartition(":")[0]))


def _check_strategy(name: str, names: Sequence[str]) -> None:
    if name.split(",")[0] not in names and not is_target(name):
        raise unknown("strategy", name, names)


class Wanted(NamedTuple):
    """How cells are to be compared, as the options say it."""

    baseline: str | None
    metric: Sequence[str] | None
    margin: float | None
    primary: str | None
    fixed_test_set: bool
    plan: float | None


def _write(
    folder: StudyFolder,
    loaded: Loaded,
    wanted: Wanted,
    format: str,
    output: Path | None,
    look: dict[str, Any],
    everything: bool,
) -> None:
    for problem in loaded.problems:
        say(f"Warning: {problem}")
    fields = _fields(folder)
    name, description = str(fields.get("name", folder.path.name)), str(fields.get("description", ""))
    elsewhere = "" if folder.path.parent == Path("results") else f" --results {folder.path.parent}"
    command = f"decaybench run {folder.study_file}{elsewhere}"
    command = f"none: the runs come from {fields['imported']}" if "imported" in fields else command
    names = _strategies(runs_frame(loaded))
    if wanted.baseline is not None:
        _check_strategy(wanted.baseline, names)
    if wanted.primary is not None and (wanted.primary.partition(":")[0] in STRATEGIES or not _is_shown(wanted, names)):
        check_primary(wanted.primary, recorded_columns(runs_frame(loaded)))
    runs, note = (runs_frame(loaded), "") if everything else _asked(folder, runs_frame(loaded))
    settings = _settings(fields, wanted, runs)
    with working(f"Comparing {len(runs)} runs …"):
        summary = summarize(runs, settings)
    summary.notes.extend([note] if note else [])
    if format == "html":  # elsewhere they are said on stderr
        summary.notes[:0] = loaded.problems
    about: dict[str, Any] = {"name": name, "description": description, "command": command}
    write_report(Report(summary, settings, **look, **about), format, output)


def _asked(folder: StudyFolder, runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keeps the runs that study.toml asks for, whatever version of the training code computed them, and says so."""
    if "imported" in _fields(folder):
        return runs, ""
    try:
        study = read_study(str(folder.study_file), {})
        wanted = {_cell(run.model_dump()) for run in study.runs()}
    except DecaybenchError as error:
        there = folder.study_file.exists()
        return runs, f"study.toml cannot be used, so every run in the folder is shown: {error}" if there else ""
    cells = runs.drop_duplicates("cell_id").set_index("cell_id")["config"].map(lambda c: _cell(config_of(c)) in wanted)
    kept = runs["cell_id"].map(cells).astype(bool) & runs["seed"].isin(study.seed_range)
    if kept.all():
        return runs, ""
    if not kept.any():
        return runs, "none of these runs is one that study.toml asks for now, since code or options have changed."
    return runs[
        kept
    ], f"{int((~kept).sum())} runs that study.toml does not ask for are left out; --everything shows them."


def _cell(config: dict[str, Any]) -> str:
    return config_digest({k: v for k, v in config.items() if k not in ("seed", "training_version")})


def _more(folder: StudyFolder, before: int, detail: Detail) -> Loaded:
    """Waits until more runs are finished."""
    while folder.count() <= before:
        time.sleep(POLL_SECONDS)
    return folder.load(detail=detail)


def _settings(fields: Mapping[str, Any], wanted: Wanted, runs: pd.DataFrame) -> ComparisonSettings:
    """Returns how to compare; intervals are anytime-valid where seeds were added until they were narrow."""
    recorded, asked = recorded_metrics(runs), fields.get("metric", [])
    names = wanted.metric or ([asked] if isinstance(asked, str) else asked)
    metrics = named(names, recorded, recorded_columns(runs)) or reported(recorded)
    if not metrics:
        there = ", ".join(recorded_columns(runs))
        raise UsageError(
            f"Nothing says in which direction a metric is better; name one: --metric NAME:max (of {there})."
        )
    if wanted.margin is not None:
        share = wanted.margin if metrics[0].scale == "plain" else wanted.margin / 100
        metrics = (replace(metrics[0], margin=share), *metrics[1:])
    return ComparisonSettings(
        wanted.baseline or fields.get("baseline", "decay-all"),
        metrics,
        anytime=fields.get("until") is not None,
        fixed_test_set=wanted.fixed_test_set,
        primary=wanted.primary or fields.get("primary"),
        plan=wanted.plan,
    )


def _fields(folder: StudyFolder) -> dict[str, Any]:
    """Returns what study.toml says, also where the code that it names has moved."""
    try:
        return plain_fields(folder.study_file)
    except UsageError:
        return {}


def _unfinished(folder: StudyFolder, loaded: Loaded) -> str:
    """Returns a sentence about the runs that study.toml asks for and that are not there; empty where all are."""
    try:
        study = read_study(str(folder.study_file), {})
        asked = study.runs()
    except DecaybenchError:  # none there, or code it names has moved
        return ""
    there = loaded.run_ids() | loaded.newer
    missing = {run.run_id: run for run in asked if run.run_id not in there}
    if study.until is not None and not next_runs(
        asked, runs_frame(loaded), study.until, study.differences_in, "decay-all"
    ):
        return ""  # it stopped because it knew enough
    if not missing:
        return ""
    older = _of_older_versions(loaded, missing)
    elsewhere = "" if folder.path.parent == Path("results") else f" --results {folder.path.parent}"
    command = f"decaybench run {folder.study_file}{elsewhere}"
    if older == len(missing):
        return f"{older} runs are those of an older version of the training code; {command} computes them anew."
    text = f"{len(missing) - older} of the study's {len(asked)} runs are not finished; {command} goes on."
    lost = {run.strategy.label for run in asked} - {run.strategy.label for run in asked if run.run_id in there}
    return text + (f" No run of {', '.join(sorted(lost))} is." if lost else "")


def _of_older_versions(loaded: Loaded, missing: dict[str, AnyConfig]) -> int:
    """Counts the missing runs that an older version of the training code has computed."""
    wanted = {(_cell(run.model_dump()), run.seed) for run in missing.values()}
    runs = runs_frame(loaded)
    cells = runs.drop_duplicates("cell_id").set_index("cell_id")["config"].map(lambda c: _cell(config_of(c)))
    return len(wanted & set(zip(runs["cell_id"].map(cells), runs["seed"], strict=True)))
