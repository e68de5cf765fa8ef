"""Writes an audit as a table, Markdown, CSV or JSON."""

import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from decaybench.errors import printable
from decaybench.report.numbers import csv_table, markdown_table, rich_text

if TYPE_CHECKING:
    from decaybench.audit.audit import Audit, AuditedParameter

DECAYED, SPARED = "decay", "·"
STYLES = {"activation": "bold", "unknown": "bold yellow"}


def _ordered(audit: "Audit") -> list["AuditedParameter"]:
    """Orders parameters: activation parameters first, then unknown ones, then the rest in the model's order."""
    order = {"activation": 0, "unknown": 1}
    return sorted(audit.rows, key=lambda row: order.get(row.role, 2))


def _shape(row: "AuditedParameter") -> str:
    return "×".join(map(str, row.shape)) or "()"


def summary(audit: "Audit") -> list[str]:
    """Writes a line per recipe: how many activation parameters, and what share of all numbers, it decays."""
    alphas, numbers = len(audit.of("activation")), sum(row.numbers for row in audit.rows)
    lines = []
    for recipe in audit.recipes:
        share = sum(row.numbers for row in audit.decayed(recipe)) / max(numbers, 1)
        hit = len(audit.decayed(recipe, "activation"))
        lines.append(
            f"{recipe} decays {hit} of {alphas} activation parameters "
            f"and {100 * share:.2f}% of all {numbers:,} numbers."
        )
    return lines


def remarks(audit: "Audit") -> list[str]:
    """Writes what a reader must know beside the table, a sentence each."""
    found = []
    if not audit.of("activation"):
        found.append(f"This model has no {'known ' * bool(audit.of('unknown'))}activation parameters.")
    if unknown := audit.of("unknown"):
        found.append(
            f"{len(unknown)} parameters belong to modules of unknown type, such as {unknown[0].module}: give --input "
            "(the shape of one batch) to classify them by what they do, or mark them with decaybench.mark_activation."
        )
    if audit.missing:
        found.append(f"In no param group: {', '.join(audit.missing)}.")
    if audit.repeated:
        found.append(f"In several param groups: {', '.join(audit.repeated)}.")
    if audit.strangers:
        found.append(f"The optimizer has {audit.strangers} parameters that are not this model's.")
    return found


def print_audit(audit: "Audit", console: Console) -> None:
    """Prints the table, then the summary."""
    table = Table(box=None, pad_edge=False)
    for name in ("parameter", "shape", "module", "role", *audit.recipes):
        table.add_column(name, no_wrap=name != "parameter", overflow="fold")
    for row in _ordered(audit):
        cells = [row.name, _shape(row), row.module, row.role]
        texts = [rich_text(cell, style=STYLES.get(row.role, "")) for cell in cells]
        for recipe in audit.recipes:
            harm = row.decayed[recipe] and row.role == "activation"
            texts.append(rich_text(DECAYED if row.decayed[recipe] else SPARED, style="bold red" if harm else "dim"))
        table.add_row(*texts)
    console.print(table)
    console.print()
    for line in summary(audit):
        console.print(rich_text(line))
    for line in remarks(audit):
        console.print(rich_text(line, style="yellow"))


def audit_to_json(audit: "Audit") -> str:
    """Writes a JSON list of objects with the keys ``name shape module role decayed``."""
    rows: list[dict[str, Any]] = [
        {"name": r.name, "shape": list(r.shape), "module": r.module, "role": r.role, "decayed": r.decayed}
        for r in _ordered(audit)
    ]
    return printable(json.dumps(rows, indent=1, ensure_ascii=False)) + "\n"


def audit_to_csv(audit: "Audit") -> str:
    """Writes CSV with one line per parameter and one column per recipe: true or false."""
    return csv_table(
        [
            {"name": r.name, "shape": _shape(r), "module": r.module, "role": r.role}
            | {recipe: str(decayed).lower() for recipe, decayed in r.decayed.items()}
            for r in _ordered(audit)
        ]
    )


def audit_to_markdown(audit: "Audit") -> str:
    """Writes the table and the summary as Markdown."""
    body = [
        [f"`{r.name}`", _shape(r), r.module, r.role, *(DECAYED if r.decayed[k] else SPARED for k in audit.recipes)]
        for r in _ordered(audit)
    ]
    header = ["parameter", "shape", "module", "role", *audit.recipes]
    return (
        "\n".join([*markdown_table(header, body), "", *(f"- {s}" for s in (*summary(audit), *remarks(audit)))]) + "\n"
    )


def _audit_table(audit: "Audit") -> str:
    out = io.StringIO()
    print_audit(audit, Console(file=out, width=160, highlight=False))
    return out.getvalue()


AUDIT_FORMATS: dict[str, Callable[["Audit"], str]] = {
    "table": _audit_table,
    "markdown": audit_to_markdown,
    "csv": audit_to_csv,
    "json": audit_to_json,
}
