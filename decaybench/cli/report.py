"""``decaybench report``."""

import io
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from decaybench.analysis.comparison import ComparisonSettings, summarize
from decaybench.analysis.stopping import next_runs
from decaybench.console import guarded, say
from decaybench.errors import DecaybenchError, UsageError, unknown
from decaybench.registry import STRATEGIES
from decaybench.registry.imports import is_target
from decaybench.results.store import Loaded, StudyFolder, find_study_folder
from decaybench.study.study import read_study

POLL_SECONDS = 2.0  # seconds between two looks at a study that runs
PICTURES = ("html", "png", "svg", "pdf")
PIPE_WIDTH = 160  # columns of a table that goes to a file or another program


class Format(StrEnum):
    """How the report is written."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"
    latex = "latex"
    html = "html"
    png = "png"
    svg = "svg"
    pdf = "pdf"


@guarded
def report(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A study folder; without it, the one that changed last."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.table,
    output: Annotated[Path | None, typer.Option(help="Write it to this file instead.")] = None,
    figure: Annotated[
        str, typer.Option(metavar="NAME", help="differences, decay, alphas or functions.")
    ] = "differences",
    layers: Annotated[bool, typer.Option("--layers", help="Show every activation layer.")] = False,
    baseline: Annotated[str, typer.Option(help="The strategy that the others are compared with.")] = "decay-all",
    margin: Annotated[
        float | None, typer.Option(min=0.0, metavar="POINTS", help="Differences within ±POINTS count as none.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show it again as runs finish, until all are.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show what a study found: accuracies, differences with intervals, activation parameters."""
    if baseline.split(",")[0] not in STRATEGIES and not is_target(baseline):
        raise unknown("strategy", baseline, STRATEGIES)
    folder = find_study_folder(directory)
    loaded = folder.load(pictures=format in PICTURES)
    if unfinished := _unfinished(folder, loaded):
        loaded.problems.append(unfinished)
    if format in PICTURES:
        _picture(folder, loaded, format, output, figure, _question(folder, baseline, margin))
        return
    if directory is None:
        say(f"Reporting {folder.path}.")
    while follow and (waiting := _unfinished(folder, loaded)):
        if loaded.records:
            show(loaded, format, output, layers, _question(folder, baseline, margin))
        say(waiting)
        loaded = _more(folder, len(loaded.records))
    if not loaded.records:
        raise DecaybenchError(" ".join([*loaded.problems, f"{folder.path} holds no finished run."]))
    show(loaded, format, output, layers, _question(folder, baseline, margin))


def _more(folder: StudyFolder, before: int) -> Loaded:
    """Waits until more runs are finished."""
    while len(list(folder.runs.glob("*.json"))) <= before:
        time.sleep(POLL_SECONDS)
    return folder.load(pictures=False)


def _picture(
    folder: StudyFolder, loaded: Loaded, format: Format, output: Path | None, figure: str, question: ComparisonSettings
) -> None:
    """Writes the page, or one figure.

    Raises:
        DecaybenchError: When there is no file to write, or nothing to show.
    """
    from decaybench.report.figures import FIGURES, draw, save

    if output is None:
        raise UsageError(f"--format {format.value} writes a file: add --output report.{format.value}.")
    if figure not in FIGURES:
        raise unknown("figure", figure, FIGURES)
    for problem in loaded.problems:
        say(f"Warning: {problem}")
    summary = summarize(loaded.records, question)
    if format is Format.html:
        from decaybench.report.html import to_html

        name, description = _about(folder)
        command = f"decaybench run {folder.study_file}"
        content = to_html(summary, question, name, description, command).encode()
    else:
        canvas = draw(figure, summary, question.baseline)
        if canvas is None:
            raise DecaybenchError(f"{folder.path} has nothing to show in the figure {figure}.")
        content = save(canvas, format.value)
    try:
        output.write_bytes(content)
    except OSError as error:
        raise DecaybenchError(f"--output {output} cannot be written: {error.strerror}.") from error
    say(f"Written to {output}.")


def _about(folder: StudyFolder) -> tuple[str, str]:
    """The name and the description of a study."""
    try:
        study = read_study(str(folder.study_file), {})
    except DecaybenchError:
        return folder.path.name, ""
    return study.name, study.description


def _question(folder: StudyFolder, baseline: str, margin: float | None) -> ComparisonSettings:
    """What is asked of the records; seeds may have been added until the intervals were narrow."""
    try:
        until = read_study(str(folder.study_file), {}).until
    except DecaybenchError:
        until = None
    return ComparisonSettings(baseline, None if margin is None else margin / 100, until is not None)


def _unfinished(folder: StudyFolder, loaded: Loaded) -> str:
    """A sentence about the runs that study.toml asks for and that are not there."""
    try:
        study = read_study(str(folder.study_file), {})
        asked = study.runs()
    except DecaybenchError:  # none there, or code it names has moved
        return ""
    missing = {r.run_id for r in asked} - {r["run_id"] for r in loaded.records}
    if study.until is not None and not next_runs(asked, loaded.records, study.until / 100, "decay-all"):
        return ""  # it stopped because it knew enough
    command = f"decaybench run {folder.study_file}"
    return f"{len(missing)} of the study's {len(asked)} runs are not finished; {command} goes on." if missing else ""


def show(loaded: Loaded, format: Format, output: Path | None, layers: bool, question: ComparisonSettings) -> None:
    """Renders records to stdout or a file.

    Raises:
        DecaybenchError: When the file cannot be written.
    """
    from decaybench import report as render  # rich's tables take their time: not for --help

    for problem in loaded.problems:
        say(f"Warning: {problem}")
    summary = summarize(loaded.records, question)
    out = io.StringIO()
    if format is Format.table:
        to_terminal = output is None and sys.stdout.isatty()
        console = Console() if to_terminal else Console(file=out, width=PIPE_WIDTH)
        render.print_summary(summary, console, question)
        if layers:
            render.print_layers(summary, console)
    else:
        writer = {Format.json: render.to_json, Format.csv: render.to_csv, Format.markdown: render.to_markdown}
        writer[Format.latex] = render.to_latex
        out.write(writer[format](summary, layers))
        for note in summary.notes:
            say(f"Note: {note}")
    if output is None:
        typer.echo(out.getvalue(), nl=False)
        return
    try:
        output.write_text(out.getvalue(), encoding="utf-8")
    except OSError as error:
        raise DecaybenchError(f"--output {output} cannot be written: {error.strerror}.") from error
