"""Prints the tables of a report in a terminal."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from decaybench.analysis.cells import Cell
from decaybench.analysis.comparison import ComparisonSettings, Summary, of
from decaybench.analysis.frame import Row, pooled
from decaybench.analysis.layers import distances, layer_rows
from decaybench.analysis.tuning import tuned
from decaybench.registry.metrics import Metric
from decaybench.report.numbers import (
    change_heading,
    format_interval,
    format_number,
    format_percent,
    format_value,
    heading,
    histogram,
    rich_text,
)
from decaybench.report.reading import how_to_read
from decaybench.report.titles import Member, by_method, titled
from decaybench.report.verdicts import difference_of, plans, tuned_tables, verdicts

BINS = 12
USUAL, NARROW, WIDE = 90, 100, 148  # columns from which there are α, intervals and pictures, everything
LEGEND = "α: the learned activation parameters after training, over layers and seeds; ≈0: within 0.01 of zero."
WIDE_LEGEND = (
    " Δf start, |f|: RMS distance of the learned functions from their start and from zero on their own inputs."
)
NARROW_LEGEND = f" A terminal of {WIDE} columns, --layers or --format csv shows quantiles, functions and histograms."


def print_summary(summary: Summary, console: Console, settings: ComparisonSettings) -> None:
    """Prints one table per question (data set, network, activation, optimizer …), one line per method."""
    baseline, metrics = settings.baseline, summary.metrics
    for title, members in titled(summary):
        common, columns = _columns(members, metrics, baseline, console.width)
        table = _table(console.width)
        for name in columns:
            table.add_column(name, justify="left" if name in ("strategy", "α") else "right", no_wrap=True)
        for line in zip(*columns.values(), strict=True):
            table.add_row(*_cells(line))
        _print(" · ".join([title, *common]), table, console)
        for sentence in verdicts(members, metrics, baseline):
            console.print(rich_text(sentence))
        for sentence in plans(members, metrics[0], baseline, settings.plan, settings.fixed) if settings.plan else ():
            console.print(rich_text(sentence))
        console.print()
    print_tuned(tuned(summary.cells, metrics[0], baseline, settings.fixed), metrics[0], baseline, console)
    learned = any(row["alpha_mean"] is not None for row in summary.rows)
    legend = LEGEND + _more(console.width) if learned else ""
    console.print(rich_text(how_to_read(summary, settings) + legend, style="dim"))
    for note in summary.notes:
        console.print(rich_text(f"Note: {note}", style="yellow"))


def _more(width: int) -> str:
    return WIDE_LEGEND if width >= WIDE else NARROW_LEGEND


def print_tuned(questions: list[list[Row]], metric: Metric, baseline: str, console: Console) -> None:
    """Prints each strategy at its own best, where a study has several rates or decays."""
    for title, columns, lines in tuned_tables(questions, metric, baseline, console.width < NARROW):
        table = _table(console.width)
        for name in columns:
            table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
        for line in lines:
            table.add_row(*_cells(line))
        _print(title, table, console)


def _cells(line: Sequence[str]) -> list[Text]:
    """Makes the cells of a line; methods that have several names take several lines."""
    return [Text("\n").join(map(rich_text, value.replace(" = ", "\n= ").split("\n"))) for value in line]


def _columns(
    members: list[Member], metrics: tuple[Metric, ...], baseline: str, width: int
) -> tuple[list[str], dict[str, list[str]]]:
    """Returns what all rows of a table have in common, for its title, and the columns that remain."""
    methods = list(by_method(members))
    shown = [member for _, member in methods]
    rows = [row for row, _ in shown]
    columns = {"strategy": [" = ".join(names) for names, _ in methods]}
    common = []
    decayed = [row for names, (row, _) in methods if names != ["no-decay"]]
    decays = {format_number(row["weight_decay"]) for row in decayed}
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
    for place, metric in enumerate(m for m in metrics if any(of(row, m, "") is not None for row in rows)):
        name = heading(metric) if width >= NARROW else metric.title
        columns[name] = [format_value(metric, of(row, metric, "")) for row in rows]
        if width >= NARROW and not place:
            ends = ((of(row, metric, "low"), of(row, metric, "high")) for row in rows)
            columns["95% interval"] = [format_interval(metric, *both) for both in ends]
        if any(of(row, metric, "difference") is not None for row in rows):
            title = change_heading(metric, baseline) if not place else f"change{', %' * (metric.scale == 'relative')}"
            columns[title + " " * place] = [difference_of(row, metric) for row in rows]
    if width >= USUAL and any(row["alpha_mean"] is not None for row in rows):
        columns |= _alpha_columns(shown, width)
    return common, columns


def _alpha_columns(members: list[Member], width: int) -> dict[str, list[str]]:
    rows = [row for row, _ in members]
    columns = {"α mean": [format_number(row["alpha_mean"]) for row in rows]}
    if width >= WIDE:
        for key, name in (("alpha_q05", "5%"), ("alpha_q50", "50%"), ("alpha_q95", "95%")):
            columns[name] = [format_number(row[key]) for row in rows]
    if width >= NARROW:
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
    for title, members in titled(summary):
        for row, cell in members:
            _print_layers(f"{title} · {row['strategy']} · decay {format_number(row['weight_decay'])}", cell, console)


def _print_layers(title: str, cell: Cell, console: Console) -> None:
    layers = list(layer_rows(cell))
    if not layers:
        return
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
    _print(title, table, console)
