"""Writes a report to the terminal, to another program or to a file."""

import sys
from pathlib import Path

import typer
from rich.console import Console

from decaybench.console import say
from decaybench.errors import DecaybenchError, UsageError, printable
from decaybench.report.formats import FORMATS, Report, print_report


def check_files(format: str, output: Path | None) -> None:
    """Checks, before anything is computed, that a format which needs a file has one, which can be written.

    Raises:
        UsageError: When it has none, or its folder is not there.
    """
    if FORMATS[format].needs_file and output is None:
        raise UsageError(f"--format {format} writes a file: add --output report.{format}.")
    if output is not None and str(output) == "-":
        raise UsageError("--output - is no file; without --output it goes to stdout.")
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}.")


def write_report(report: Report, format: str = "table", output: Path | None = None) -> None:
    """Writes a report.

    Args:
        report: What to write.
        format: One of `FORMATS`.
        output: The file to write; None means stdout.

    Raises:
        UsageError: When the format needs a file and none is given.
        DecaybenchError: When the file cannot be written, or there is nothing to show.
    """
    chosen = FORMATS[format]
    check_files(format, output)
    if format == "table" and output is None and sys.stdout.isatty():
        print_report(report, Console())
        return
    if chosen.needs_file:
        say(f"Writing {output} …")
    content = chosen.write(report)
    if chosen.says_notes:
        for note in report.summary.notes:
            say(f"Note: {note}")
    write_content(content, output)


def write_content(content: str | bytes, output: Path | None) -> None:
    """Writes a text or a file to stdout or to a file.

    Raises:
        DecaybenchError: When the file cannot be written.
    """
    content = printable(content) if isinstance(content, str) else content
    if output is None:
        typer.echo(content, nl=False)
        return
    try:
        output.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise DecaybenchError(f"--output {output} cannot be written: {error.strerror}.") from error
    say(f"Written to {output}.")
