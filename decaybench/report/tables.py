"""Writes the table for programs and for documents: CSV, JSON, Markdown, LaTeX."""

import json
from collections.abc import Sequence

from decaybench.analysis.comparison import CONFIG_COLUMNS, Summary, of
from decaybench.analysis.frame import Row
from decaybench.analysis.layers import layer_rows
from decaybench.errors import unknown
from decaybench.registry.metrics import Metric
from decaybench.report.columns import table_of
from decaybench.report.numbers import (
    MISSING,
    csv_table,
    format_interval,
    format_number,
    format_percent,
    format_value,
    heading,
    markdown_table,
)
from decaybench.report.titles import titled
from decaybench.report.verdicts import difference_of

MOSTLY = 4  # rank up to which columns are in a document
ALPHA_TITLES = ("α mean", "α 5%", "α 50%", "α 95%", "α near 0, %")


def to_json(summary: Summary, layers: bool = False) -> str:
    """Writes a JSON list of objects, one per cell, with fractions as they are; ``layers`` adds a list of them."""
    rows: list[Row] = [dict(row) for row in summary.rows]
    if layers:
        for row, cell in zip(rows, summary.cells, strict=True):
            row["layers"] = list(layer_rows(cell))
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(summary: Summary, layers: bool = False) -> str:
    """Writes CSV with one line per cell; with ``layers`` one line per cell and layer."""
    rows: list[Row] = summary.rows
    if layers:
        rows = [
            {**{key: row[key] for key in (*CONFIG_COLUMNS, *summary.varying)}, **layer}
            for row, cell in zip(summary.rows, summary.cells, strict=True)
            for layer in layer_rows(cell)
        ]
    return csv_table(rows)


def to_markdown(summary: Summary, layers: bool = False) -> str:
    """Writes a Markdown table with rounded numbers; with ``layers`` a second one."""
    varying = summary.varying
    lines = markdown_table(*_whole(summary))
    if layers:
        keys = ["alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95", "alpha_near_zero"]
        keys += ["distance_from_start", "distance_from_zero", "distance_from_relu", "share_of_norm"]
        body = [
            [format_number(row[key]) for key in (*CONFIG_COLUMNS, *varying)]
            + [layer["layer"]]
            + [format_number(layer[key]) for key in keys]
            for row, cell in zip(summary.rows, summary.cells, strict=True)
            for layer in layer_rows(cell)
        ]
        lines += ["", *markdown_table([*CONFIG_COLUMNS, *varying, "layer", *keys], body)]
    return "\n".join([*lines, "", *(f"- {note}" for note in summary.notes)]).rstrip() + "\n"


def _whole(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Returns the headings of a table with everything, and its lines."""
    used = [key for key in CONFIG_COLUMNS if any(row[key] is not None for row in summary.rows)]
    titles = ["decay" if key == "weight_decay" else key for key in used] + ["seeds"]
    for metric in summary.metrics:
        titles += [heading(metric), "95% interval", "difference", "verdict"]
    titles += [*ALPHA_TITLES, *summary.varying]
    return titles, [_cells(row, used, summary) for row in summary.rows]


def _cells(row: Row, used: list[str], summary: Summary) -> list[str]:
    seeds = f"{row['seeds']} ({row['diverged']} diverged)" if row["diverged"] else str(row["seeds"])
    return [
        *(format_number(row[key]) for key in used),
        seeds,
        *(text for metric in summary.metrics for text in _of_metric(row, metric)),
        *(format_number(row[key]) for key in ("alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95")),
        format_percent(row["alpha_near_zero"]),
        *(format_number(row[key]) for key in summary.varying),
    ]


def _of_metric(row: Row, metric: Metric) -> list[str]:
    change = difference_of(row, metric)
    return [
        format_value(metric, of(row, metric, "")),
        format_interval(metric, of(row, metric, "low"), of(row, metric, "high")),
        change + "%" * (metric.scale == "relative" and change != MISSING),
        of(row, metric, "verdict") or MISSING,
    ]


def to_latex(summary: Summary, baseline: str, chosen: Sequence[str] = ()) -> str:
    """Writes a LaTeX table with booktabs' rules for each question; what all its rows have in common is in the caption.

    Args:
        summary: The summary to show.
        baseline: The strategy that the others are compared with.
        chosen: The columns that are wanted, by their keys; those that a terminal shows if empty.

    Raises:
        UsageError: When there is no such column.
    """
    parts = []
    for title, members in titled(summary):
        table = table_of(members, summary.metrics, baseline)
        known = {column.key: column for column in table.columns}
        for key in chosen:
            if key not in known:
                raise unknown("column", key, known)
        columns = [known[key] for key in chosen] or [c for c in table.columns if c.rank <= MOSTLY]
        names = {"strategy": [" = ".join(names) for names in table.names]}
        lines = [" & ".join(_latex(c.title) for c in columns) + r" \\", r"\midrule"]
        cells = [names.get(c.key, c.cells) for c in columns]
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in zip(*cells, strict=True)]
        kinds = "".join("l" if column.left else "r" for column in columns)
        parts += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(' · '.join([title, *table.common]))}}}"]
        parts += [
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(["% needs \\usepackage{booktabs}", *parts]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "α": r"$\alpha$",
    "−": "$-$",
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "≈": r"$\approx$",
    "·": r"$\cdot$",
    "×": r"$\times$",
}
LATEX |= {"[": "{[}", "]": "{]}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {c: "\\" + c for c in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)
