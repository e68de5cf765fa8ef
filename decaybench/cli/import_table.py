"""The command ``decaybench import``, which makes a study of a table that somebody has from elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from decaybench.analysis.comparison import ComparisonSettings, summarize
from decaybench.analysis.frame import runs_frame
from decaybench.cli.options import parse_pair
from decaybench.cli.output import write_report
from decaybench.console import guarded, say
from decaybench.errors import UsageError, unknown
from decaybench.registry.metrics import metric as metric_of
from decaybench.report.formats import Report
from decaybench.results.imported import SYNONYMS, read_table
from decaybench.results.store import StudyFolder
from decaybench.study.study import SAFE_NAME


@guarded
def import_table(
    table: Annotated[
        Path, typer.Argument(metavar="FILE.csv", help="A line for each run: strategy, seed, decay, metrics.")
    ],
    metric: Annotated[
        list[str], typer.Option(metavar="NAME", help="A column with a metric, score:max say; the first comes first.")
    ],
    by: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column that tells questions apart, a model size say.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="The column of strategy, seed or weight_decay.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="The strategy that the others are compared with.")] = "decay-all",
    name: Annotated[str | None, typer.Option(help="Folder of the study.")] = None,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Folder of all studies.")] = Path("results"),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a study of runs from elsewhere, a W&B export say, so that report and its page serve them, too.

    Example: decaybench import runs.csv --metric val/loss --baseline all
    """
    metrics = [metric_of(text) for text in metric]
    found = read_table(table, metrics, by or (), _columns(column or ()))
    names = sorted({record.config["strategy"]["name"] for record in found.records})
    if baseline not in names:
        raise UsageError(f"--baseline {baseline}: {table} has no such strategy; it has {', '.join(names)}.")
    folder = StudyFolder(results / _name(table, name))
    fields = {"name": folder.path.name, "description": f"Imported from {table.name}", "imported": table.name}
    there = _imported_before(folder)
    if folder.count() and not there:
        raise UsageError(f"{folder.path} holds another study; give --name for another folder.")
    if there:
        folder.clear()
    folder.write_study(tomli_w.dumps({**fields, "metric": list(metric), "baseline": baseline}))
    for record in found.records:
        folder.write(record)
    if found.empty:
        say(f"Note: {len(found.empty)} lines hold no result and are left out (line {found.empty[0]} is the first).")
    if found.aside:
        say(f"Note: these columns are not used: {', '.join(found.aside)}; --by tells questions apart.")
    settings = ComparisonSettings(baseline, tuple(metrics))
    write_report(
        Report(summarize(runs_frame(folder.load(detail="summary")), settings), settings, name=folder.path.name)
    )
    page = f"decaybench report {folder.path} --format html --output report.html"
    say(f"{len(found.records)} runs are in {folder.path}. The page: {page}")


def _columns(given: Any) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in given if parse_pair(text, "--column"))
    for field in pairs:
        if field not in SYNONYMS:
            raise unknown("field of --column", field, SYNONYMS)
    return pairs


def _name(table: Path, name: str | None) -> str:
    chosen = name or table.stem
    if not SAFE_NAME.fullmatch(chosen):
        raise UsageError(f"--name {chosen!r}: a name becomes a folder: letters, digits and . _ + - only.")
    return chosen


def _imported_before(folder: StudyFolder) -> bool:
    return folder.study_file.is_file() and "\nimported = " in f"\n{folder.study_file.read_text('utf-8')}"
