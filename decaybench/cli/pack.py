"""The command ``decaybench pack``, which puts a study's records into one file."""

from pathlib import Path
from typing import Annotated

import typer

from decaybench.console import guarded, say
from decaybench.errors import DecaybenchError
from decaybench.results.store import find_study_folder


@guarded
def pack(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR …", help="Study folders.")],
    no_layers: Annotated[
        bool, typer.Option("--no-layers", help="Leave out what became of each activation, most of a large file.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Put the records of finished studies into one file each: runs.parquet, which pandas and DuckDB read.

    It may be killed at any point, and a study may go on meanwhile. Everything else works as before.

    Without layers reports show no distributions of α, and no other study takes the runs over.

    Example: decaybench pack results/digits
    """
    failed = False
    for directory in directories:
        folder = find_study_folder(directory)
        count, problems = folder.pack(layers=not no_layers)
        for problem in problems:
            say(f"Warning: {problem}")
        failed |= bool(problems)
        if not folder.packed_file.exists():
            raise DecaybenchError(f"{directory} holds no finished run.")
        size = folder.packed_file.stat().st_size / 1e6
        typer.echo(f"{folder.packed_file}: {count:,} runs, {size:.1f} MB")
    if failed:
        raise DecaybenchError("Some records could not be packed; their files stay.")
