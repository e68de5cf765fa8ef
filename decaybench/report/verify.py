"""Writes a verification as tables or JSON."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from decaybench.report.numbers import rich_text

if TYPE_CHECKING:
    from decaybench.verify.lockstep import MethodComparison

    Known = tuple[str, bool, MethodComparison]

STYLES = {"identical": "green", "equal": "green", "different": "yellow"}
KEYS = ("optimizer", "clipping", "left", "right", "max_difference", "verdict", "reason")


def verify_to_json(rows: Sequence["MethodComparison"]) -> str:
    """Writes a JSON list of objects, one per pair and condition."""
    return json.dumps([{k: getattr(r, k) for k in KEYS} for r in rows], indent=1, ensure_ascii=False) + "\n"


def print_verify(rows: Sequence["MethodComparison"], answer: str, known: Sequence["Known"], console: Console) -> None:
    """Prints the answer, what is known with its measurement, and a matrix for every clipping."""
    console.print(rich_text(answer, style="bold"))
    table = _table("When are two methods the same?", "statement", "measured", "holds", "why")
    for text, same, row in known:
        holds = (row.verdict != "different") == same
        table.add_row(
            rich_text(text),
            _verdict(row),
            rich_text("yes" if holds else "NO", style="" if holds else "red"),
            rich_text(row.reason),
        )
    _print(table, console)
    for clipping in dict.fromkeys(row.clipping for row in rows):
        shown = [r for r in rows if r.clipping == clipping]
        plain = [r for r in shown if "," not in r.optimizer]
        _print(_matrix(plain, f"Clipping: {clipping}"), console)
        if special := [r for r in shown if "," in r.optimizer]:
            _print(_matrix(special, "Special conditions"), console)
    reasons = {r.reason: r for r in reversed(rows) if r.verdict == "different"}
    table = _table("Why two methods part", "why", "for example")
    for reason, row in reversed(reasons.items()):
        clipped = "" if row.clipping == "none" else f", {row.clipping} clipping"
        table.add_row(rich_text(reason), rich_text(f"{row.left} against {row.right} ({row.optimizer}{clipped})"))
    _print(table, console)


def _matrix(rows: Sequence["MethodComparison"], title: str) -> Table:
    """Makes a table with pairs down and optimizers across."""
    optimizers = list(dict.fromkeys(r.optimizer for r in rows))
    table = _table(title, "left", "right", *optimizers)
    for pair in dict.fromkeys((r.left, r.right) for r in rows):
        cells = {r.optimizer: _verdict(r) for r in rows if (r.left, r.right) == pair}
        table.add_row(*map(rich_text, pair), *(cells.get(o, rich_text("")) for o in optimizers))
    return table


def _verdict(row: "MethodComparison") -> Text:
    """Writes ``identical``, ``equal 3e-17``, or ``2e-02 from 1``: the difference and the step of parting."""
    number = f"{row.max_difference:.0e}"
    text = {"identical": "identical", "equal": f"equal {number}"}.get(row.verdict, f"{number} from {row.parted}")
    return rich_text(text, style=STYLES[row.verdict])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=rich_text(title, style="bold"), title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _print(table: Table, console: Console) -> None:
    console.print()
    console.print(table)
