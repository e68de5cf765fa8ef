"""Writes the activation parameters of a checkpoint as a table, Markdown, CSV or JSON."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from decaybench.analysis.frame import NEAR_ZERO
from decaybench.errors import printable
from decaybench.report.numbers import csv_table, format_number, histogram, markdown_table, rich_text

if TYPE_CHECKING:
    from decaybench.audit.checkpoint import LearnedLayer

BINS = 16
NARROW = 100
Row = dict[str, Any]


@dataclass(frozen=True)
class Inspected:
    """What a checkpoint holds, and the same layers of another one, where two are compared.

    Attributes:
        layers: The layers of the checkpoint.
        others: Those of the other one, by name.
        remarks: What a reader must know, a sentence each.
    """

    layers: "Sequence[LearnedLayer]"
    others: "dict[str, LearnedLayer] | None" = None
    remarks: Sequence[str] = ()


def rows(found: Inspected) -> list[Row]:
    """Returns one row a layer, and one for all together where there are several."""
    lines = [_row(layer.name, layer.shape, layer.values, found) for layer in found.layers]
    if len(lines) > 1:
        everything = np.concatenate([layer.values for layer in found.layers])
        lines.append(_row("all", (len(everything),), everything, found))
    return lines


def _row(name: str, shape: tuple[int, ...], values: Any, found: Inspected) -> Row:
    finite = values[np.isfinite(values)]
    low, q05, q50, q95, high = (
        (float(q) for q in np.quantile(finite, [0, 0.05, 0.5, 0.95, 1])) if len(finite) else [None] * 5
    )
    row: Row = {"name": name, "shape": list(shape), "n": len(values), "mean": _mean(finite)}
    row |= {"low": low, "q05": q05, "q50": q50, "q95": q95, "high": high}
    row |= {"near_zero": _mean(np.abs(finite) <= NEAR_ZERO), "negative": _mean(finite < 0)}
    row["not_finite"] = len(values) - len(finite)
    if found.others is not None:
        row |= _against(name, values, found)
    return row


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _against(name: str, values: Any, found: Inspected) -> Row:
    """Returns how far the same layer is in the other checkpoint."""
    assert found.others is not None
    if name == "all":
        pairs = [(layer.values, found.others[layer.name].values) for layer in found.layers if _both(layer, found)]
        if not pairs:
            return {"mean_there": None, "rms_change": None}
        mine, theirs = (np.concatenate(part) for part in zip(*pairs, strict=True))
    else:
        layer = next(layer for layer in found.layers if layer.name == name)
        if not _both(layer, found):
            return {"mean_there": None, "rms_change": None}
        mine, theirs = values, found.others[name].values
    both = np.isfinite(mine) & np.isfinite(theirs)
    change = _mean((mine[both] - theirs[both]) ** 2)
    return {"mean_there": _mean(theirs[np.isfinite(theirs)]), "rms_change": None if change is None else change**0.5}


def _both(layer: "LearnedLayer", found: Inspected) -> bool:
    return found.others is not None and layer.name in found.others and found.others[layer.name].shape == layer.shape


def _table_of(found: Inspected, width: int) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and lines of a table; narrow terminals get fewer."""
    lines = rows(found)
    columns = {
        "parameter": [row["name"] for row in lines],
        "n": [str(row["n"]) for row in lines],
        "mean": [format_number(row["mean"]) for row in lines],
    }
    shown = (("low", "least"), ("q05", "5%"), ("q50", "50%"), ("q95", "95%"), ("high", "most"))
    for key, title in shown if width >= NARROW else shown[2:3]:
        columns[title] = [format_number(row[key]) for row in lines]
    columns["≈0 %"] = [_percent(row["near_zero"]) for row in lines]
    columns["< 0 %"] = [_percent(row["negative"]) for row in lines]
    if found.others is not None:
        columns["mean there"] = [format_number(row["mean_there"]) for row in lines]
        columns["RMS change"] = [format_number(row["rms_change"]) for row in lines]
    columns["picture"] = _pictures(found, len(lines))
    return list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _pictures(found: Inspected, lines: int) -> list[str]:
    values = [layer.values[np.isfinite(layer.values)] for layer in found.layers]
    if lines > len(values):
        values.append(np.concatenate(values))
    everything = np.concatenate(values) if values else np.empty(0)
    if not len(everything):
        return [""] * lines
    low, high = np.quantile(everything, [0.005, 0.995])
    edges = np.linspace(low - 1e-6, high + 1e-6, BINS + 1)
    return [histogram([int(c) for c in np.histogram(v, edges)[0]]) for v in values]


def print_inspected(found: Inspected, console: Console) -> None:
    """Prints the table, then the remarks."""
    header, lines = _table_of(found, console.width)
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name in ("parameter", "picture") else "right", overflow="fold")
    for line in lines:
        table.add_row(*(rich_text(cell) for cell in line))
    console.print(table)
    for remark in found.remarks:
        console.print(rich_text(remark, style="dim"))


def _as_table(found: Inspected) -> str:
    out = io.StringIO()
    print_inspected(found, Console(file=out, width=140, highlight=False))
    return out.getvalue()


def _as_markdown(found: Inspected) -> str:
    header, lines = _table_of(found, NARROW)
    return "\n".join([*markdown_table(header, lines), "", *(f"- {remark}" for remark in found.remarks)]) + "\n"


def _as_csv(found: Inspected) -> str:
    return csv_table([{**row, "shape": "×".join(map(str, row["shape"]))} for row in rows(found)])


def _as_json(found: Inspected) -> str:
    return printable(json.dumps(rows(found), indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


INSPECT_FORMATS: dict[str, Callable[[Inspected], str]] = {
    "table": _as_table,
    "markdown": _as_markdown,
    "csv": _as_csv,
    "json": _as_json,
}
