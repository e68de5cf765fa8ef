"""The formats of a report. A new one is a function here and an entry in `FORMATS`; the command line offers them all."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decaybench.errors import DecaybenchError, UsageError, unknown
from decaybench.report.numbers import PIPE_WIDTH

if TYPE_CHECKING:
    from decaybench.analysis.comparison import ComparisonSettings, Summary

FIGURE_NAMES = ("answer", "differences", "decay", "functions", "alphas", "pulls")


@dataclass(frozen=True)
class Report:
    """A summary with everything a format may want to know beside it.

    Attributes:
        summary: What was found.
        settings: How cells were compared.
        layers: Whether every activation layer is shown.
        figure: One of `FIGURE_NAMES`, for formats that draw one.
        name: The name of the study.
        description: What the study asks.
        command: The command that reproduces it.
        wide: Whether tables show every column.
        columns: Those of a LaTeX table.
        width: Of a figure, in inches.
        font_size: Of a figure, in points.
    """

    summary: "Summary"
    settings: "ComparisonSettings"
    layers: bool = False
    figure: str = FIGURE_NAMES[0]
    name: str = ""
    description: str = ""
    command: str = ""
    wide: bool = False
    columns: Sequence[str] = ()
    width: float = 6.5
    font_size: float = 9.0


@dataclass(frozen=True)
class Format:
    """How a report is written.

    Attributes:
        write: Gives the content of the file.
        needs_file: The content is nothing for a terminal: ``--output`` is required.
        needs_curves: It draws learned functions and trajectories, which are otherwise not kept in memory.
        says_notes: Notes go to stderr, since the content has no place for them.
    """

    write: Callable[[Report], str | bytes]
    needs_file: bool = False
    needs_curves: bool = False
    says_notes: bool = False


def _table(report: Report) -> str:
    from rich.console import Console

    out = io.StringIO()
    print_report(report, Console(file=out, width=PIPE_WIDTH))
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def print_report(report: Report, console: object) -> None:
    """Prints the tables of a report to a rich ``Console``."""
    from decaybench.report.terminal import print_layers, print_summary

    print_summary(report.summary, console, report.settings, report.wide)  # type: ignore[arg-type]
    if report.layers:
        print_layers(report.summary, console)  # type: ignore[arg-type]


def _markdown(report: Report) -> str:
    from decaybench.report.tables import to_markdown

    return to_markdown(report.summary, report.layers)


def _csv(report: Report) -> str:
    from decaybench.report.tables import to_csv

    return to_csv(report.summary, report.layers)


def _json(report: Report) -> str:
    from decaybench.report.tables import to_json

    return to_json(report.summary, report.layers)


def _latex(report: Report) -> str:
    from decaybench.report.tables import to_latex

    return to_latex(report.summary, report.settings.baseline, report.columns)


def _html(report: Report) -> bytes:
    from decaybench.report.html import to_html

    return to_html(report.summary, report.settings, report.name, report.description, report.command).encode()


def _figure(kind: str) -> Callable[[Report], bytes]:
    def write(report: Report) -> bytes:
        from decaybench.report.figures import panels, spec
        from decaybench.report.vega import POINTS_PER_INCH, Look, save

        look = Look(report.width * POINTS_PER_INCH, report.font_size)
        found = spec(report.figure, panels(report.figure, report.summary, report.settings, look), look)
        if found is None:
            raise DecaybenchError(f"{report.name} has nothing to show in the figure {report.figure}.")
        return save(found, kind)

    return write


SUFFIXES = {
    **{".txt": "table", ".md": "markdown", ".csv": "csv", ".json": "json", ".tex": "latex", ".html": "html"},
    **{".htm": "html", ".png": "png", ".svg": "svg", ".pdf": "pdf"},
}


def format_for(asked: str | None, output: Path | None) -> str:
    """Returns the format of a report: the one asked for, that of the file's suffix, or the table.

    Raises:
        UsageError: When the suffix is that of no format, or of another one.
    """
    if asked is not None and asked not in FORMATS:
        raise unknown("value of --format", asked, FORMATS)
    if output is None:
        return asked or "table"
    by_suffix = SUFFIXES.get(output.suffix.lower())
    if asked is None and by_suffix is None:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"--output {output}: its suffix says no format; give one of {known}, or --format.")
    if asked is not None and by_suffix not in (asked, None):
        raise UsageError(f"--output {output} is called as {by_suffix} is, but --format says {asked}; leave one out.")
    return asked or str(by_suffix)


FORMATS: dict[str, Format] = {
    "table": Format(_table),
    "markdown": Format(_markdown, says_notes=True),
    "csv": Format(_csv, says_notes=True),
    "json": Format(_json, says_notes=True),
    "latex": Format(_latex, says_notes=True),
    "html": Format(_html, needs_file=True, needs_curves=True),
    **{kind: Format(_figure(kind), needs_file=True, needs_curves=True) for kind in ("png", "svg", "pdf")},
}
