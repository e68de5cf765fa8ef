"""Writes the table for programs and for documents: CSV, JSON, Markdown, LaTeX."""

import json

from decaybench.analysis.comparison import COLUMNS, CONFIG_COLUMNS, Summary
from decaybench.analysis.frame import Row
from decaybench.analysis.layers import layer_rows
from decaybench.report.numbers import csv_table, format_interval, format_number, format_percent, markdown_table

COLUMN_TITLES = (
    *("dataset", "network", "activation", "strategy", "optimizer", "lr", "decay", "epochs", "seeds"),
    *("test accuracy %", "95% interval", "difference", "interval", "verdict"),
    *("test loss", "difference", "interval", "verdict"),
    *("α mean", "α 5%", "α 50%", "α 95%", "α near 0, %"),
)


def to_json(summary: Summary, layers: bool = False) -> str:
    """Writes a JSON list of objects, one per cell; accuracies are fractions, ``layers`` adds a list under that key."""
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
            {**{key: row[key] for key in row if key in CONFIG_COLUMNS or key not in COLUMNS}, **layer}
            for row, cell in zip(summary.rows, summary.cells, strict=True)
            for layer in layer_rows(cell)
        ]
    return csv_table(rows)


def to_markdown(summary: Summary, layers: bool = False) -> str:
    """Writes a Markdown table with rounded numbers; with ``layers`` a second one."""
    varying = [key for key in summary.rows[0] if key not in COLUMNS] if summary.rows else []
    lines = markdown_table(
        [*COLUMN_TITLES, *varying],
        [[*_cells(row), *(format_number(row[key]) for key in varying)] for row in summary.rows],
    )
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


def _cells(row: Row) -> list[str]:
    seeds = f"{row['seeds']} ({row['diverged']} diverged)" if row["diverged"] else str(row["seeds"])
    return [
        *(format_number(row[key]) for key in CONFIG_COLUMNS),
        seeds,
        format_percent(row["test_accuracy"]),
        format_interval(row["test_accuracy_low"], row["test_accuracy_high"]),
        format_percent(row["difference"], signed=True),
        format_interval(row["difference_low"], row["difference_high"], signed=True),
        row["verdict"] or "–",
        format_number(row["test_loss"]),
        format_number(row["loss_difference"]),
        _interval(row["loss_difference_low"], row["loss_difference_high"]),
        row["loss_verdict"] or "–",
        *(format_number(row[key]) for key in ("alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95")),
        format_percent(row["alpha_near_zero"]),
    ]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{format_number(low)}, {format_number(high)}]"


def to_latex(summary: Summary, layers: bool = False) -> str:
    """Writes a LaTeX table with booktabs' rules."""
    varying = [key for key in summary.rows[0] if key not in COLUMNS] if summary.rows else []
    titles = [*COLUMN_TITLES, *varying]
    lines = [" & ".join(map(_latex, titles)) + r" \\", r"\midrule"]
    for row in summary.rows:
        lines.append(" & ".join(map(_latex, [*_cells(row), *(format_number(row[key]) for key in varying)])) + r" \\")
    columns = "l" * 5 + "r" * (len(titles) - 5)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "α": r"$\alpha$", "−": "$-$"}
LATEX |= {c: "\\" + c for c in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text)
