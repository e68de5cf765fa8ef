"""Prints the tables of a report in a terminal."""

from itertools import groupby

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from decaybench.analysis.cells import Cell, strategy_name
from decaybench.analysis.comparison import COLUMNS, CONFIG_COLUMNS, ComparisonSettings, Summary, distances, layer_rows
from decaybench.analysis.frame import Row, pooled
from decaybench.analysis.tuning import TUNED_FIELDS, tuned
from decaybench.report.numbers import format_interval, format_number, format_percent, histogram, rich_text
from decaybench.report.verdicts import tuned_table, verdicts

BINS = 12
NARROW, WIDE = 100, 148  # below: no pictures; from here on: every column
HOW_TO_READ = (
    "Test accuracy in %, differences in percentage points, each with its 95% Student t interval over seeds "
    "(none where there is one seed, or all seeds are equal). Verdicts: Student's paired t-test at 5%, with Holm's "
    "correction over the report; a number that would have shown is the difference found with a power of 80%. "
)
HOW_ANYTIME = (
    "Test accuracy in %, differences in percentage points. Seeds were added until the differences were known well "
    "enough, so their 95% intervals are anytime-valid (t-test martingale); those of single accuracies are Student's t. "
)
LEGEND = "α: the learned activation parameters after training, over layers and seeds; ≈0: within 0.01 of zero."
WIDE_LEGEND = (
    " Δf start, |f|: RMS distance of the learned functions from their start and from zero on their own inputs."
)
NARROW_LEGEND = f" A terminal of {WIDE} columns, --layers or --format csv shows quantiles, functions and histograms."
Member = tuple[Row, Cell]


def print_summary(summary: Summary, console: Console, settings: ComparisonSettings) -> None:
    """Prints one table per question (data set, network, activation, optimizer …), one line per strategy."""
    pairs, baseline = zip(summary.rows, summary.cells, strict=True), settings.baseline
    for title, group in groupby(pairs, key=lambda pair: _question(pair[0])):
        members = list(group)
        common, columns = _columns(members, baseline, console.width)
        table = _table(console.width)
        for name in columns:
            table.add_column(name, justify="left" if name in ("strategy", "α") else "right", no_wrap=True)
        for line in zip(*columns.values(), strict=True):
            table.add_row(*(rich_text(value) for value in line))
        _print(" · ".join([title, *common]), table, console)
        for sentence in verdicts([row for row, _ in members], baseline):
            console.print(rich_text(sentence))
    print_tuned(tuned(summary.cells, baseline), baseline, console)
    how = HOW_ANYTIME if settings.anytime else HOW_TO_READ
    console.print(rich_text(how + LEGEND + (WIDE_LEGEND if console.width >= WIDE else NARROW_LEGEND), style="dim"))
    for note in summary.notes:
        console.print(rich_text(f"Note: {note}", style="yellow"))


def print_tuned(rows: list[Row], baseline: str, console: Console) -> None:
    """Prints each strategy at its own best, where a study has several rates or decays."""
    fields = [key for key in (rows[0] if rows else ()) if key not in (*TUNED_FIELDS, "strategy")][:-11]
    for _, group in groupby(rows, key=lambda row: [str(row[key]) for key in fields]):
        title, columns, lines = tuned_table(list(group), baseline)
        table = _table(console.width)
        for name in columns:
            table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
        for line in lines:
            table.add_row(*(rich_text(value) for value in line))
        _print(title, table, console)


def _question(row: Row) -> str:
    """Writes everything but the strategy and its decay, for the title of a table."""
    varying = [f"{key}={format_number(v)}" for key, v in row.items() if key not in COLUMNS]
    named = [*(str(row[key]) for key in CONFIG_COLUMNS[:3]), row["optimizer"], f"lr {format_number(row['lr'])}"]
    return " · ".join([*named, f"{row['epochs']} epoch{'s' * (row['epochs'] != 1)}", *varying])


def _columns(members: list[Member], baseline: str, width: int) -> tuple[list[str], dict[str, list[str]]]:
    """Returns what all rows of a table have in common, for its title, and the columns that remain."""
    rows = [row for row, _ in members]
    columns = {"strategy": [str(row["strategy"]) for row in rows]}
    common = []
    decays = {format_number(row["weight_decay"]) for row, cell in members if strategy_name(cell) != "no-decay"}
    if len(decays) <= 1:
        common += [f"decay {decay}" for decay in decays]
    else:
        columns["decay"] = [format_number(row["weight_decay"]) for row in rows]
    seeds = [f"{r['seeds']}, {r['diverged']} diverged" if r["diverged"] else str(r["seeds"]) for r in rows]
    if len(set(seeds)) == 1:
        number, _, rest = seeds[0].partition(",")
        common.append(f"{number} seed{'' if number == '1' else 's'}" + (f" ({rest.strip()})" if rest else ""))
    else:
        columns["seeds"] = seeds
    columns["test %"] = [format_percent(row["test_accuracy"]) for row in rows]
    columns["95% interval"] = [format_interval(row["test_accuracy_low"], row["test_accuracy_high"]) for row in rows]
    if any(row["difference"] is not None for row in rows):
        columns[f"− {baseline}"] = [format_percent(row["difference"], signed=True) for row in rows]
        columns["95% interval "] = [
            format_interval(r["difference_low"], r["difference_high"], signed=True) for r in rows
        ]
    if any(row["alpha_mean"] is not None for row in rows):
        columns |= _alpha_columns(members, width)
    return common, columns


def _alpha_columns(members: list[Member], width: int) -> dict[str, list[str]]:
    rows = [row for row, _ in members]
    columns = {"α mean": [format_number(row["alpha_mean"]) for row in rows]}
    if width >= WIDE:
        for key, name in (("alpha_q05", "5%"), ("alpha_q50", "50%"), ("alpha_q95", "95%")):
            columns[name] = [format_number(row[key]) for row in rows]
    columns["≈0 %"] = [format_percent(row["alpha_near_zero"]) for row in rows]
    if width >= WIDE:
        start, zero = zip(*(distances(cell) for _, cell in members), strict=True)
        columns |= {"Δf start": [format_number(d) for d in start], "|f|": [format_number(d) for d in zero]}
    if width >= NARROW:
        edges = _edges([cell for _, cell in members])
        columns["α"] = [_picture(cell, edges) for _, cell in members]
    return columns


def _table(width: int) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1 if width < NARROW else 2, 0, 0))


def _print(title: str, table: Table, console: Console) -> None:
    """Prints a table whole: one too wide for the terminal is wrapped by it, never cut."""
    console.print(rich_text(title, style="bold"), soft_wrap=True)
    table.width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    console.print(table, soft_wrap=True)


def _edges(cells: list[Cell]) -> list[float]:
    """Computes common bins, so that the histograms of one table can be compared; none where nothing is learned."""
    alphas = pooled([layer for cell in cells for layers in cell.layers for layer in layers])
    if not np.isfinite(alphas).all():
        alphas = alphas[np.isfinite(alphas)]
    if not len(alphas):
        return []
    low, high = (float(q) for q in np.quantile(alphas, [0.005, 0.995], overwrite_input=True))
    spread = max(high - low, 1e-6)
    return [float(e) for e in np.linspace(low - 0.02 * spread, high + 0.02 * spread, BINS + 1)]


def _picture(cell: Cell, edges: list[float], layer: int | None = None) -> str:
    return histogram([int(c) for c in np.histogram(cell.alphas(layer), edges)[0]]) if edges else ""


def print_layers(summary: Summary, console: Console) -> None:
    """Prints every activation layer of every cell."""
    for row, cell in zip(summary.rows, summary.cells, strict=True):
        layers = list(layer_rows(cell))
        if not layers:
            continue
        table = _table(console.width)
        table.add_column("layer", no_wrap=True)
        for name in ("α mean", "5%", "50%", "95%", "≈0 %", "95% of norm", "Δf start", "|f|", "Δf ReLU"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("α", no_wrap=True)
        edges = _edges([cell])
        for index, layer in enumerate(layers):
            numbers = [format_number(layer[k]) for k in ("alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95")]
            numbers += [format_percent(layer["alpha_near_zero"]), format_percent(layer["share_of_norm"])]
            numbers += [format_number(layer[f"distance_from_{k}"]) for k in ("start", "zero", "relu")]
            table.add_row(*(rich_text(value) for value in [layer["layer"], *numbers, _picture(cell, edges, index)]))
        _print(f"{_question(row)} · {row['strategy']} · decay {format_number(row['weight_decay'])}", table, console)
