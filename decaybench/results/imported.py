"""Makes records of a table that somebody has from elsewhere: a CSV file with a line for each run."""

import csv
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from decaybench.errors import UsageError, unknown
from decaybench.registry.metrics import Metric
from decaybench.registry.spec import Spec, explain, plain_value
from decaybench.results.record import RESERVED, Record
from decaybench.study.config import ScriptConfig

# Names that columns have in people's tables.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "strategy": ("strategy", "method", "arm"),
    "seed": ("seed", "random_seed", "trial_seed"),
    "weight_decay": ("weight_decay", "decay", "wd", "lambda", "λ", "weight-decay"),
}
DECIMAL = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?%?")


@dataclass(frozen=True)
class Imported:
    """What was read.

    Attributes:
        records: A record for each line that has a result.
        empty: Lines without a result, by their number in the file.
        aside: Columns that are neither a metric nor told apart.
    """

    records: list[Record]
    empty: list[int]
    aside: list[str]


def read_table(path: Path, metrics: Sequence[Metric], by: Sequence[str], columns: Mapping[str, str]) -> Imported:
    """Reads a CSV file.

    Args:
        path: The file, with a heading.
        metrics: The columns that hold metrics.
        by: Columns that tell questions apart, such as a model size.
        columns: The columns of ``strategy``, ``seed`` and ``weight_decay``, where they are called otherwise.

    Raises:
        UsageError: When a column is not there, a value is no number, or two lines are of one run.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (at byte {error.start}).") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        lines = [(reader.line_num, _decimals(row, delimiter)) for row in reader]
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num} is no CSV: {error}.") from error
    heading = [name for name in reader.fieldnames or () if name]
    if twice := sorted({name for name in heading if heading.count(name) > 1}):
        raise UsageError(f"{path} has several columns called {twice[0]}; rename them.")
    if not lines:
        raise UsageError(f"{path} holds no line below its heading.")
    of = {field: _column(path, field, heading, columns.get(field)) for field in SYNONYMS}
    for name in (*(metric.name for metric in metrics), *by):
        if name not in heading:
            raise unknown(f"column of {path}", name, heading)
    if taken := sorted(RESERVED & {*(metric.name for metric in metrics), *by}):
        raise UsageError(f"{path}: nothing can be called {taken[0]}, which a record has already; rename the column.")
    records: dict[str, tuple[int, Record]] = {}
    empty = []
    source = hashlib.sha256(content).hexdigest()[:12]
    for number, row in lines:
        record = _record(f"{path}:{number}", path, source, row, metrics, by, of)
        if record is None:
            empty.append(number)
            continue
        if record.run_id in records:
            raise UsageError(
                f"{path}:{number} is the same run as line {records[record.run_id][0]} (strategy, seed, decay"
                f"{''.join(', ' + name for name in by)}); name the column that tells them apart with --by."
            )
        records[record.run_id] = (number, record)
    used = {*of.values(), *by, *(metric.name for metric in metrics)}
    return Imported([record for _, record in records.values()], empty, [name for name in heading if name not in used])


def _decimals(row: dict[str, Any], delimiter: str) -> dict[str, Any]:
    """Writes decimal commas as points, which they are where something else separates the columns."""
    if delimiter == ",":
        return row
    return {
        key: value.replace(",", ".") if isinstance(value, str) and DECIMAL.fullmatch(value.strip()) else value
        for key, value in row.items()
    }


def _column(path: Path, field: str, heading: Sequence[str], given: str | None) -> str | None:
    """Finds the column of a field; a table of one decay needs none for it."""
    if given is not None:
        if given not in heading:
            raise unknown(f"column of {path}", given, heading)
        return given
    plain = {name.removeprefix("config.").removeprefix("config/").strip().lower(): name for name in heading}
    found = next((plain[name] for name in SYNONYMS[field] if name in plain), None)
    if found is None and field != "weight_decay":
        raise UsageError(f"{path} has no column {field} (it has {', '.join(heading)}); name it: --column {field}=NAME.")
    return found


def _record(
    place: str,
    path: Path,
    source: str,
    row: Mapping[str, str | None],
    metrics: Sequence[Metric],
    by: Sequence[str],
    of: Mapping[str, str | None],
) -> Record | None:
    """Makes a record of a line; None where it has no result."""
    values = {metric.name: _value(place, metric, row[metric.name]) for metric in metrics}
    if all(value is None for value in values.values()):
        return None
    decay = row[of["weight_decay"]] if of["weight_decay"] else "0"
    try:
        config = ScriptConfig(
            script=path.name,
            source=source,
            args={name: plain_value(row[name] or "") for name in by},
            strategy=Spec(name=(row[of["strategy"] or ""] or "").strip() or "(none)"),
            weight_decay=_float(place, of["weight_decay"] or "", decay),
            seed=_whole(place, of["seed"] or "", row[of["seed"] or ""]),
        )
    except ValidationError as error:
        raise UsageError(explain(error, f"{place}: ")) from error
    lost = any(value is not None and not math.isfinite(value) for value in values.values())
    history = {k: [v if v is not None and math.isfinite(v) else None] for k, v in values.items() if v is not None}
    return Record(
        run_id=config.run_id,
        config=config.model_dump(),
        fingerprints={},
        diverged=1 if lost else None,
        history=history,
        metrics={metric.name: metric.direction for metric in metrics if metric.name in history},
    )


def _value(place: str, metric: Metric, text: str | None) -> float | None:
    if not (text or "").strip():
        return None
    share = metric.scale == "percent" and str(text).strip().endswith("%")
    value = _float(place, metric.name, str(text).strip().removesuffix("%") if share else text) / (100 if share else 1)
    if math.isfinite(value) and not metric.low <= value <= metric.high:
        raise UsageError(
            f"{place}: {metric.name} = {value:g}, which is outside {metric.low:g} … {metric.high:g}; percentages are "
            "written as fractions."
        )
    return value


def _float(place: str, name: str, text: Any) -> float:
    try:
        return float(str(text).strip())
    except ValueError as error:
        raise UsageError(f"{place}: {name} = {text!r} is no number.") from error


def _whole(place: str, name: str, text: Any) -> int:
    value = _float(place, name, text)
    if not value.is_integer():
        raise UsageError(f"{place}: {name} = {text!r} is no whole number.")
    return int(value)
