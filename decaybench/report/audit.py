"""Writes an audit as a table, Markdown, CSV, JSON, annotations of GitHub or JUnit."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from decaybench.errors import DecaybenchError, printable
from decaybench.report.folded import folded
from decaybench.report.numbers import PIPE_WIDTH, csv_table, markdown_table, rich_text

if TYPE_CHECKING:
    from decaybench.audit.audit import Audit, AuditedParameter

DECAYED, SPARED = "decay", "·"
STYLES = {"activation": "bold", "unknown": "bold yellow"}
SHORTEST_NAME = 20  # columns for names of parameters, which go on in another line
USUAL = ("torch", "exclude-1d", "hf-trainer", "decaybench")  # first columns where several recipes do the same


@dataclass(frozen=True)
class Shown:
    """An audit, and how it is to be written.

    Attributes:
        audit: The audit.
        target: What was audited.
        every: Whether to show every recipe, also those that decay the same parameters of this model.
        failures: What ``--fail-on`` or ``--check`` found, a sentence each.
        place: The file of the user's and the line of what was audited, where it is hers.
        every_row: Whether to show also the rows that all recipes treat alike.
        gate: What decides about failures: ``--fail-on``, or ``as in FILE``.
    """

    audit: "Audit"
    target: str = ""
    every: bool = True
    failures: Sequence[str] = ()
    place: tuple[str, int] | None = None
    gate: str = "--fail-on"
    every_row: bool = False


def _ordered(audit: "Audit") -> list["AuditedParameter"]:
    """Orders parameters: activation parameters first, then unknown ones, then the rest in the model's order."""
    order = {"activation": 0, "unknown": 1}
    return sorted(audit.rows, key=lambda row: order.get(row.role, 2))


def _shape(row: "AuditedParameter") -> str:
    return "×".join(map(str, row.shape)) or "()"


def columns(audit: "Audit", every: bool) -> list[list[str]]:
    """Returns the recipes in groups that do the same here, each under its most usual name; one a group if all are."""
    if every:
        return [[name] for name in audit.recipes]
    groups = [sorted(group, key=lambda n: (n not in USUAL, audit.recipes.index(n))) for group in audit.alike()]
    return sorted(groups, key=lambda group: (group[0] not in USUAL, audit.recipes.index(group[0])))


def summary(audit: "Audit", every: bool = True) -> list[str]:
    """Writes a line per recipe: how many activation parameters, and what share of all numbers, it decays."""
    alphas, numbers = len(audit.of("activation")), sum(row.numbers for row in audit.rows)
    lines = []
    for group in columns(audit, every):
        share = sum(row.numbers for row in audit.decayed(group[0])) / max(numbers, 1)
        hit = len(audit.decayed(group[0], "activation"))
        lines.append(
            f"{group[0]} decays {hit} of {alphas} activation parameters "
            f"and {100 * share:.2f}% of all {numbers:,} numbers."
            + (f" The same do {', '.join(group[1:])}." if len(group) > 1 else "")
        )
    return lines


def remarks(audit: "Audit") -> list[str]:
    """Writes what a reader must know beside the table, a sentence each."""
    found = []
    ran = sum(row.by_running for row in audit.rows)
    if not audit.of("activation"):
        if ran:
            found.append(f"No activation parameter was found; {ran} roles are what running the model once showed.")
        else:
            found.append(f"This model has no {'known ' * bool(audit.of('unknown'))}activation parameters.")
    if unknown := audit.of("unknown"):
        advice = (
            "running the model did not show what they are: mark those that are (decaybench.mark_activation)"
            if audit.ran
            else "give --input (the shape of one batch) to find out by running the model, or mark those that are "
            "(decaybench.mark_activation)"
        )
        found.append(
            f"{len(unknown)} parameters belong to modules of unknown type, such as {unknown[0].name} of "
            f"{unknown[0].module}: {advice}."
        )
    if audit.missing:
        found.append(f"In no param group: {', '.join(audit.missing)}.")
    if audit.repeated:
        found.append(f"In several param groups: {', '.join(audit.repeated)}.")
    if audit.strangers:
        found.append(f"The optimizer has {audit.strangers} parameters that are not this model's.")
    return found + audit.remarks


def _body(shown: Shown) -> tuple[list[str], list[tuple["AuditedParameter", list[str]]], str]:
    """Returns the columns of a table, each row with its cells, and a sentence about the rows that are left out.

    Repeated blocks are one row; with several recipes, what all of them treat alike is left out, unless it is an
    activation parameter or unknown.
    """
    audit = shown.audit
    names = [group[0] for group in columns(audit, shown.every)]
    real = any(row.optimizer for row in audit.rows)
    kept: list[AuditedParameter] = []
    alike: list[AuditedParameter] = []
    for row in _ordered(audit):
        same = len(names) > 1 and len({row.decayed[name] for name in names}) == 1 and row.role not in STYLES
        (alike if same and not shown.every_row else kept).append(row)
    cells = [
        [_shape(row), row.module, row.role]
        + [row.optimizer] * real
        + [DECAYED if row.decayed[name] else SPARED for name in names]
        for row in kept
    ]
    everything = [row.name for row in audit.rows]
    folds = folded(
        [row.name for row in kept], [tuple(c) for c in cells], list(zip(kept, cells, strict=True)), everything
    )
    rows = [(row, [name + (f" ×{count}" if count > 1 else ""), *line]) for name, (row, line), count in folds]
    rest = ""
    if alike:
        decayed = sum(row.decayed[names[0]] for row in alike)
        rest = (
            f"{len(alike)} more parameters, which every recipe treats alike: {decayed} decayed, {len(alike) - decayed} "
            "not (--all-rows shows them)."
        )
    return ["parameter", "shape", "module", "role", *["by"] * real, *names], rows, rest


def print_audit(shown: Shown, console: Console) -> None:
    """Prints the table, then the summary; a narrow terminal gets fewer columns, and names are never cut."""
    header, rows, rest = _body(shown)
    fixed = len(header) - len(columns(shown.audit, shown.every))
    widths = [max([cell_len(name), *(cell_len(cells[i]) for _, cells in rows)]) for i, name in enumerate(header)]
    kept, dropped = list(range(len(header))), list[int]()
    for index in [2, 1, *range(len(header) - 1, fixed, -1)]:  # module and shape, then recipes from the last on
        if sum(widths[i] + 1 for i in kept) > console.width:
            kept.remove(index)
            dropped.append(index)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    room = max(console.width - sum(widths[i] + 1 for i in kept[1:]) - 1, SHORTEST_NAME)
    for index in kept:
        table.add_column(
            header[index], no_wrap=index != 0, overflow="fold", width=None if index else min(widths[0], room)
        )
    for row, cells in rows:
        texts = []
        for cell in (cells[index] for index in kept):
            style = STYLES.get(row.role, "")
            if cell in (DECAYED, SPARED):
                style = "bold red" if cell == DECAYED and row.role == "activation" else "dim"
            texts.append(rich_text(cell, style=style))
        table.add_row(*texts)
    console.print(table)
    if rest:
        console.print(rich_text(rest, style="dim"))
    console.print()
    if dropped:
        names = ", ".join(header[index] for index in sorted(dropped))
        console.print(rich_text(f"Not shown for want of width: {names}.", style="dim"))
    for line in summary(shown.audit, shown.every):
        console.print(rich_text(line))
    for line in remarks(shown.audit):
        console.print(rich_text(line, style="yellow"))


def audit_to_json(found: Sequence[Shown]) -> str:
    """Writes a JSON list: ``name shape module role decayed optimizer by_running``, ``target`` if there are several."""
    rows: list[dict[str, Any]] = [
        {**_target(shown, found), "name": r.name, "shape": list(r.shape), "module": r.module, "role": r.role}
        | {"decayed": r.decayed, "optimizer": r.optimizer, "by_running": r.by_running}
        for shown in found
        for r in _ordered(shown.audit)
    ]
    return printable(json.dumps(rows, indent=1, ensure_ascii=False)) + "\n"


def _target(shown: Shown, found: Sequence[Shown]) -> dict[str, Any]:
    return {"target": shown.target} if len(found) > 1 else {}


def audit_to_csv(found: Sequence[Shown]) -> str:
    """Writes CSV with one line per parameter and one column per recipe: true or false."""
    real = any(row.optimizer for shown in found for row in shown.audit.rows)
    return csv_table(
        [
            {**_target(shown, found), "name": r.name, "shape": _shape(r), "module": r.module, "role": r.role}
            | ({"by": r.optimizer} if real else {})
            | {recipe: str(decayed).lower() for recipe, decayed in r.decayed.items()}
            for shown in found
            for r in _ordered(shown.audit)
        ]
    )


def audit_to_markdown(found: Sequence[Shown]) -> str:
    """Writes the tables and the summaries as Markdown."""
    lines = []
    for shown in found:
        header, rows, rest = _body(shown)
        body = [[f"`{cells[0]}`", *cells[1:]] for _, cells in rows]
        sentences = (*([rest] if rest else []), *summary(shown.audit, shown.every), *remarks(shown.audit))
        lines += [f"## {shown.target}", ""] if len(found) > 1 else []
        lines += [*markdown_table(header, body), "", *(f"- {s}" for s in sentences)]
    return "\n".join(lines) + "\n"


def _audit_table(found: Sequence[Shown]) -> str:
    out = io.StringIO()
    for shown in found:
        if len(found) > 1:
            out.write(f"{printable(shown.target)}\n\n")
        print_audit(shown, Console(file=out, width=PIPE_WIDTH, highlight=False))
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def _brief(found: Sequence[Shown]) -> str:
    """Says in a line of each target that all is well; what is not is said as an error."""
    lines = []
    for shown in found:
        spared = len(shown.audit.of("activation"))
        count = f"{spared} activation parameter{'s' * (spared != 1)}"
        what = f"{', '.join(shown.audit.recipes)} spares what it should" if shown.gate == "--fail-on" else shown.gate
        if not shown.failures:
            lines.append(printable(f"{shown.target}: {what} ({count}).") + "\n")
    return "".join(lines)


def _github(found: Sequence[Shown]) -> str:
    """Writes a workflow command of GitHub for each failure, which annotates the file of the model."""
    lines = []
    for shown in found:
        file, line = shown.place or ("", 0)
        at = f"file={_escaped(file, True)},line={line}," if file else ""
        title = _escaped(f"decaybench audit {shown.target}", True)
        lines += [f"::error {at}title={title}::{_escaped(printable(text))}\n" for text in shown.failures]
    return "".join(lines)


def _escaped(text: str, is_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if is_property else text


def _junit(found: Sequence[Shown]) -> str:
    """Writes JUnit's XML: a test case for each failure, or one of the target that passed."""
    try:
        from junitparser import Failure, JUnitXml, TestCase, TestSuite
    except ImportError as error:
        raise DecaybenchError("--format junit needs junitparser: pip install junitparser.") from error
    xml = JUnitXml()
    for shown in found:
        suite = TestSuite(f"decaybench audit {shown.target}")
        for number, text in enumerate(shown.failures or [""], 1):
            case = TestCase(f"finding {number}" if text else "nothing is decayed by accident", shown.target)
            if text:
                case.result = [Failure(printable(text))]
            suite.add_testcase(case)
        xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    return str(xml.tostring().decode()) + "\n"  # type: ignore[no-untyped-call]


OF_A_GATE = ("brief", "github", "junit")
AUDIT_FORMATS: dict[str, Callable[[Sequence[Shown]], str]] = {
    "brief": _brief,
    "table": _audit_table,
    "markdown": audit_to_markdown,
    "csv": audit_to_csv,
    "json": audit_to_json,
    "github": _github,
    "junit": _junit,
}
