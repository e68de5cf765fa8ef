"""The command ``decaybench status``, which says how far a study is."""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from decaybench.console import guarded
from decaybench.errors import DecaybenchError, UsageError
from decaybench.execution.progress import Progress, loads
from decaybench.results.store import StudyFolder
from decaybench.study.config import AnyConfig
from decaybench.study.study import AnyStudy, plain_fields, read_study

STALE_PROGRESS_SECONDS = 60.0  # seconds; a study on another machine that noted nothing for longer is not running


@guarded
def status(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A study folder; without it, the one that changed last."),
    ] = None,
    cells: Annotated[bool, typer.Option("--cells", help="Show every cell.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show how far a study is that is running or was left.

    Example: decaybench status results/digits
    """
    folder = StudyFolder(directory or _latest())
    if "imported" in _fields(folder):
        typer.echo(f"{folder.path}: imported from {_fields(folder)['imported']}, {folder.count()} runs")
        return
    try:
        asked = read_study(str(folder.study_file), {})
        runs = asked.runs()
    except DecaybenchError as error:
        raise UsageError(f"{folder.path} is no study that was begun: {error}") from error
    done = {run.run_id for run in runs if folder.has(run.run_id)}
    progress = _noted(folder)
    running = progress is not None and _alive(progress, folder)
    state = "running" if running else "left"
    if len(done) == len(runs) or (not running and done and _is_known_well_enough(asked, folder, runs)):
        state = "complete"
    typer.echo(f"{folder.path}: {state}, {len(done)} of {len(runs)} runs are finished")
    if progress is not None and state == "running":
        for line in progress.lines():
            typer.echo(line)
    elif state == "left":
        typer.echo(f"Go on with: decaybench run {folder.study_file} --results {folder.path.parent}")
    if cells:
        for cell_id in dict.fromkeys(run.cell_id for run in runs):
            cell = [run for run in runs if run.cell_id == cell_id]
            many = sum(run.run_id in done for run in cell)
            typer.echo(f"{many}/{len(cell)} {cell[0].name} {cell[0].details}")


def _is_known_well_enough(asked: AnyStudy, folder: StudyFolder, runs: Sequence[AnyConfig]) -> bool:
    """Tells whether a study that adds seeds until differences are known needs no more of them."""
    if asked.until is None:
        return False
    from decaybench.analysis.comparison import ComparisonSettings
    from decaybench.analysis.frame import runs_frame  # the import of pandas is slow
    from decaybench.analysis.stopping import next_runs

    finished = runs_frame(folder.load([run.run_id for run in runs], detail="summary"))
    return not next_runs(runs, finished, asked.until, asked.differences_in, ComparisonSettings().baseline)


def _fields(folder: StudyFolder) -> dict[str, Any]:
    """Returns what study.toml says."""
    try:
        return plain_fields(folder.study_file)
    except DecaybenchError:
        return {}


def _latest(results: Path = Path("results")) -> Path:
    """Finds the study below ``results`` that changed last."""
    folders = [path.parent for path in results.glob("*/study.toml")]
    if not folders:
        raise UsageError(f"There is no study below {results}/; start with: decaybench run.")
    return max(folders, key=lambda f: max(p.stat().st_mtime for p in (f, f / "study.toml")))


def _noted(folder: StudyFolder) -> Progress | None:
    try:
        if not folder.progress_file.is_file():
            return None
        progress = loads(folder.progress_file.read_text("utf-8"))
        progress.lines()
        os.path.join(progress.host, str(int(progress.pid)))  # noqa: PTH118
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError):
        return None  # what another version or somebody else wrote
    return progress


def _alive(progress: Progress, folder: StudyFolder) -> bool:
    """Tells whether the process that wrote the progress still runs."""
    if progress.host != platform.node():
        return time.time() - folder.progress_file.stat().st_mtime < STALE_PROGRESS_SECONDS
    try:
        os.kill(progress.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it exists and belongs to another user, or is no number of a process
        return True
    return True
