"""Writes the figures of a benchmark as tables or JSON."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from decaybench.report.numbers import rich_text

Row = dict[str, Any]


def print_rows(title: str, rows: Sequence[Row], console: Console) -> None:
    """Prints rows of the same kind as one table."""
    table = Table(title=rich_text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for name in columns:
        numbers = any(isinstance(row.get(name), float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(rich_text(_number(row.get(name))) for name in columns))
    console.print(table)
    console.print()


def _number(value: object) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def to_json(found: dict[str, Any]) -> str:
    """Writes every figure as JSON."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
