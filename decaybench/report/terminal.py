"""Prints the tables of a report in a terminal: one line a row, in the columns that there are."""

from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from decaybench.analysis.cells import Cell
from decaybench.analysis.comparison import ComparisonSettings, Summary
from decaybench.analysis.frame import Row, pooled
from decaybench.analysis.layers import layer_rows
from decaybench.analysis.tuning import tuned
from decaybench.registry.metrics import Metric
from decaybench.report.columns import BASELINE, DETAIL, Column, Table, table_of
from decaybench.report.headline import headline
from decaybench.report.numbers import format_number, format_percent, histogram, joined, rich_text
from decaybench.report.reading import how_to_read
from decaybench.report.titles import titled
from decaybench.report.verdicts import plans, tuned_tables, verdicts

BINS = 12
NARROW = 100  # columns below which the table of each strategy at its own best leaves out the intervals of means
NAMES, SHORTEST = 24, 12  # columns that a long name may take, and that are left of it where there is little room
GAP = 2  # blanks between columns; one where there is little room
COLORS = {"better": "bold green", "worse": "bold red"}
MANY = 2  # questions, with more of which the answer is said again at the end


def print_summary(summary: Summary, console: Console, settings: ComparisonSettings, wide: bool = False) -> None:
    """Prints the answer, then one table a question with its verdicts first.

    Args:
        summary: The summary to show.
        console: Where it is printed; its width decides which columns are.
        settings: How cells were compared.
        wide: Whether every column is shown, however wide the table gets.
    """
    baseline, metrics = settings.baseline, summary.metrics
    found = titled(summary)
    answer = headline(summary, settings) if len(found) > 1 else []
    for sentence in answer:
        console.print(rich_text(sentence, style="bold"))
    if answer:
        console.print()
    legends: dict[str, None] = {}
    for title, members in found:
        table = table_of(members, metrics, baseline)
        columns = [*table.columns, *_pictures(table)]
        console.print(rich_text(" · ".join([title, *table.common]), style="bold"), soft_wrap=True)
        for sentence in verdicts(members, metrics, baseline, brief=not wide):
            console.print(rich_text(sentence, style=COLORS.get(sentence.partition(" ")[0].lower(), "")))
        for sentence in plans(members, metrics[0], baseline, settings.plan, settings.fixed) if settings.plan else ():
            console.print(rich_text(sentence))
        shown = _print(columns, console, wide)
        legends |= dict.fromkeys(f"{c.title}: {c.explained}. " for c in shown if c.explained)
        for sentence in _same(table):
            console.print(rich_text(sentence, style="dim"))
        console.print()
    print_tuned(tuned(summary.cells, metrics[0], baseline, settings.fixed), metrics[0], baseline, console, wide)
    more = "" if wide else "--wide shows every column."
    console.print(rich_text(how_to_read(summary, settings) + "".join(legends) + more, style="dim"))
    if len(found) > MANY:
        console.print()
        for sentence in answer:
            console.print(rich_text(sentence, style="bold"))
    for note in summary.notes:
        console.print(rich_text(f"Note: {note}", style="yellow"))


def _same(table: Table) -> list[str]:
    """Says which strategies are one method, each once."""
    groups = dict.fromkeys(tuple(names) for names in table.names if len(names) > 1)
    return [f"{names[0]} stands for {joined(names[1:])}, too: provably the same here." for names in groups]


def _pictures(table: Table) -> list[Column]:
    """Makes a column with a histogram of the activation parameters of each row, over common bins."""
    edges = _edges([cell for _, cell in table.members])
    pictures = [_picture(cell, edges) for _, cell in table.members]
    return [Column("alphas", "α low → high", pictures, 5, left=True)] if edges else []


def print_tuned(
    questions: list[list[Row]], metric: Metric, baseline: str, console: Console, wide: bool = False
) -> None:
    """Prints each strategy at its own best, where a study has several rates or decays."""
    narrow = console.width < NARROW and not wide
    for title, columns, lines in tuned_tables(questions, metric, baseline, narrow):
        cells = [list(column) for column in zip(*lines, strict=True)]
        cells[0] = [name.split(" = ")[0] for name in cells[0]]
        found = [Column(name, name, c, left=not i) for i, (name, c) in enumerate(zip(columns, cells, strict=True))]
        console.print(rich_text(title, style="bold"))
        _print(found, console, wide)
        console.print()


def _print(columns: Sequence[Column], console: Console, wide: bool = False) -> list[Column]:
    """Prints a table whose rows take one line each, without blanks at their ends; returns the columns that fit."""
    gap = GAP if wide or console.width >= NARROW else 1
    shown = list(columns) if wide else _fitting(columns, console.width, gap)
    widths = [_width(column) for column in shown]
    if not wide:
        widths[0] = min(widths[0], max(console.width - sum(width + gap for width in widths[1:]), SHORTEST))
    names = _shortened(shown[0].cells, widths[0])
    headings = [_lines(column.title, width) for column, width in zip(shown, widths, strict=True)]
    height = max(map(len, headings))
    lines = [
        [rich_text(h[i - height + len(h)] if i >= height - len(h) else "", style="bold") for h in headings]
        for i in range(height)
    ]
    lines += [[rich_text(name), *(_cell(column, i) for column in shown[1:])] for i, name in enumerate(names)]
    for line in lines:
        texts = [_padded(text, width, c.left) for text, width, c in zip(line, widths, shown, strict=True)]
        whole = Text(" " * gap).join(texts)
        whole.rstrip()
        console.print(whole, soft_wrap=True)
    for name, full in dict(zip(names, shown[0].cells, strict=True)).items():
        if name != full:
            console.print(rich_text(f"{name}: {full}.", style="dim"))
    return shown


def _fitting(columns: Sequence[Column], width: int, gap: int) -> list[Column]:
    """Chooses the columns that fit, the important ones first."""
    chosen, used = {0}, min(_width(columns[0]), max(SHORTEST, min(NAMES, width // 3)))
    for i in sorted(range(1, len(columns)), key=lambda i: columns[i].rank):
        if columns[i].rank < DETAIL and used + gap + _width(columns[i]) <= width:
            chosen.add(i)
            used += gap + _width(columns[i])
    return [column for i, column in enumerate(columns) if i in chosen]


def _width(column: Column) -> int:
    """Returns the width of a column, whose heading may be broken between its words."""
    return max(cell_len(text) for text in [*column.title.split(" "), *column.cells])


def _lines(title: str, width: int) -> list[str]:
    """Breaks a heading into lines."""
    lines = [""]
    for word in title.split(" "):
        whole = f"{lines[-1]} {word}".strip()
        lines[-1:] = [whole] if cell_len(whole) <= width else [lines[-1], word]
    return lines


def _shortened(names: Sequence[str], width: int) -> list[str]:
    """Shortens names that are wider than a column in their middle, so that they stay different."""
    short: dict[str, str] = {}
    for name in dict.fromkeys(names):
        mark = "…"
        while name not in short:
            found = name if cell_len(name) <= width else _middle_out(name, width, mark)
            if found in short.values():
                mark = f"…{len(short)}…"
            else:
                short[name] = found
    return [short[name] for name in names]


def _middle_out(name: str, width: int, mark: str) -> str:
    """Replaces the middle of a name by a mark, so that it is as wide as a column at most."""
    start, end, left = "", "", width - cell_len(mark)
    for first, last in zip(name, reversed(name), strict=True):
        if cell_len(start + first + end) > left:
            break
        start += first
        if cell_len(start + last + end) > left:
            break
        end = last + end
    return start + mark + end


def _cell(column: Column, row: int) -> Text:
    text = column.cells[row]
    verdict = column.verdicts[row] if column.verdicts else ""
    return rich_text(text, style=COLORS.get(verdict, "dim" if text == BASELINE else ""))


def _padded(text: Text, width: int, left: bool) -> Text:
    blank = Text(" " * max(width - text.cell_len, 0))
    return text + blank if left else blank + text


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
    edges = _edges([cell])
    columns = [Column("layer", "layer", [layer["layer"] for layer in layers], left=True)]
    for key, name in (("alpha_mean", "α mean"), ("alpha_q05", "5%"), ("alpha_q50", "50%"), ("alpha_q95", "95%")):
        columns.append(Column(key, name, [format_number(layer[key]) for layer in layers]))
    for key, name in (("alpha_near_zero", "≈0 %"), ("share_of_norm", "95% of norm")):
        columns.append(Column(key, name, [format_percent(layer[key]) for layer in layers], 2))
    for key, name in (("start", "moved"), ("zero", "size"), ("relu", "from ReLU")):
        columns.append(Column(key, name, [format_number(layer[f"distance_from_{key}"]) for layer in layers], 1))
    pictures = [_picture(cell, edges, index) for index in range(len(layers))]
    columns.append(Column("alphas", "α low → high", pictures, 3, left=True))
    console.print(rich_text(title, style="bold"), soft_wrap=True)
    _print(columns, console)
