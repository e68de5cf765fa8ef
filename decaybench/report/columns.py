"""The columns of a question's table, for the terminal and for the page: one row a method."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from decaybench.analysis.cells import is_called, short_label
from decaybench.analysis.comparison import of
from decaybench.analysis.frame import Row
from decaybench.analysis.layers import distances
from decaybench.errors import one_line
from decaybench.registry.metrics import Metric
from decaybench.report.numbers import (
    MISSING,
    format_change,
    format_interval,
    format_number,
    format_percent,
    format_value,
    half_width,
    heading,
)
from decaybench.report.titles import Member, by_method
from decaybench.report.verdicts import difference_of

BASELINE = "baseline"
SIZE = "root mean square of the learned functions, on the inputs that they really get"
MOVED = "root mean square of the distance of the learned functions from where they started, on the same inputs"
NEAR = "share of the learned activation parameters within 0.01 of zero"
HOLM = "p-value, corrected for all methods and metrics of the question (Holm)"
SEEN = "true difference that would have been found with a probability of 80%"
OFTEN = "share of the seeds in which it is better than the baseline; ties count half"
PAIRING = "correlation over seeds with the baseline: high where seeds matter more than strategies"
LONG = 16  # characters; a baseline with a longer name is called baseline in a heading


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: Its name for ``--column``, that of the column of ``--format csv`` where it has one.
        title: Its heading.
        cells: The text of each row.
        rank: What is shown first where there is little room: 0 always, `DETAIL` on demand only.
        verdicts: The verdict on each row, for its colour; empty where the column has none.
        explained: What it means, in a sentence; empty where its heading says it.
        left: Whether it holds words.
    """

    key: str
    title: str
    cells: Sequence[str]
    rank: int = 0
    verdicts: Sequence[str] = field(default=())
    left: bool = False
    explained: str = ""


DETAIL = 9


@dataclass(frozen=True)
class Table:
    """The table of one question.

    Attributes:
        common: What all rows have in common, for the title.
        names: Of each row, all strategies that are its method.
        members: Of each row, the first cell of its method.
        columns: The columns in reading order; the first one is the strategy.
        baseline: Which rows are the baseline.
    """

    common: list[str]
    names: list[list[str]]
    members: list[Member]
    columns: list[Column]
    baseline: list[bool]


def table_of(members: Sequence[Member], metrics: Sequence[Metric], baseline: str) -> Table:
    """Makes the table of one question; a column whose cells are all alike is said in the title instead.

    Args:
        members: The cells of the question with their rows.
        metrics: What is compared.
        baseline: The strategy that the others are compared with.
    """
    methods = list(by_method(members))
    names, shown = [names for names, _ in methods], [member for _, member in methods]
    cells = [cell for _, cell in members]
    is_baseline = [
        any(is_called(c, baseline, cells) for r, c in members if (r["method"], r["weight_decay"]) == key(row))
        for row, _ in shown
    ]
    common: list[str] = []
    columns = [Column("strategy", "strategy", [one_line(short_label(group[0])) for group in names], left=True)]
    columns += _configuration(names, shown, common)
    for place, metric in enumerate(m for m in metrics if any(of(row, m, "") is not None for row, _ in shown)):
        columns += _of_metric(metric, [row for row, _ in shown], is_baseline, baseline, place)
    if any(row["alpha_mean"] is not None for row, _ in shown):
        columns += _of_activations(shown)
    return Table(common, names, shown, columns, is_baseline)


def key(row: Row) -> tuple[str, float]:
    """Returns what the cells of one method have in common in a question."""
    return row["method"], row["weight_decay"]


def _configuration(names: list[list[str]], shown: list[Member], common: list[str]) -> Iterator[Column]:
    """Yields decay and seeds where they vary, and notes them as common where they do not."""
    rows = [row for row, _ in shown]
    decays = {
        format_number(row["weight_decay"]) for group, row in zip(names, rows, strict=True) if group != ["no-decay"]
    }
    if len(decays) <= 1:
        common += [f"λ {decay}" for decay in decays]
    else:
        yield Column("weight_decay", "λ", [format_number(row["weight_decay"]) for row in rows])
    seeds = [f"{r['seeds']} ({r['diverged']} diverged)" if r["diverged"] else str(r["seeds"]) for r in rows]
    counts = {examples for _, cell in shown for examples in cell.test_examples}
    if len(set(seeds)) == 1:
        images = f" × {counts.pop():,} test examples" if len(counts) == 1 else ""
        number, _, rest = seeds[0].partition(" ")
        common.append(f"{number} seed{'s' * (number != '1')} {rest}".strip() + images)
    else:
        yield Column("seeds", "seeds", seeds, 1)


def _of_metric(metric: Metric, rows: list[Row], is_baseline: list[bool], baseline: str, place: int) -> Iterator[Column]:
    """Yields a metric's value and its difference to the baseline, then details."""
    first = not place
    found = [tuple(of(row, metric, key) for key in ("", "low", "high")) for row in rows]
    values = [f"{format_value(metric, ends[0])} {half_width(metric, *ends)}".rstrip() for ends in found]
    yield Column(metric.name, heading(metric), values, 0 if first else 4)
    if any(of(row, metric, "difference") is not None for row in rows):
        changes = [
            BASELINE if is_base and of(row, metric, "difference") is None else difference_of(row, metric)
            for row, is_base in zip(rows, is_baseline, strict=True)
        ]
        changes = [change if change != BASELINE or first else MISSING for change in changes]
        unit = ", %" if metric.scale == "relative" else ""
        against = one_line(short_label(baseline))
        against = against if len(against) <= LONG else BASELINE
        title = f"vs {against}{unit}" if first else f"Δ {metric.title}{unit}"
        words = [of(row, metric, "verdict") or "" for row in rows]
        yield Column(f"{metric.name}_difference", title, changes, 0 if first else 1 + min(place, 3) // 2, words)
        seen = ((of(row, metric, "detectable"), of(row, metric, "baseline")) for row in rows)
        better = [of(row, metric, "improvement") for row in rows]
        yield from (
            _detail(metric, "verdict", "verdict", [word or MISSING for word in words]),
            _detail(metric, "p_holm", "p (Holm)", [format_number(of(row, metric, "p_holm")) for row in rows], HOLM),
            _detail(
                metric,
                "detectable",
                f"would have shown{unit}",
                [format_change(metric, *both, signed=False) for both in seen],
                SEEN,
            ),
            _detail(
                metric,
                "improvement",
                "better in %",
                [MISSING if b is None else f"{100 * b:.0f}" for b in better],
                OFTEN,
            ),
            _detail(
                metric, "pairing", "pairing r", [format_number(of(row, metric, "pairing")) for row in rows], PAIRING
            ),
        )
    ends = [format_interval(metric, of(row, metric, "low"), of(row, metric, "high")) for row in rows]
    yield _detail(metric, "interval", "95% interval", ends)


def _detail(metric: Metric, what: str, title: str, cells: Sequence[str], explained: str = "") -> Column:
    """Makes a column about a metric that is shown on demand."""
    return Column(f"{metric.name}_{what}", f"{metric.title}: {title}", cells, DETAIL, explained=explained)


def _of_activations(shown: list[Member]) -> Iterator[Column]:
    """Yields what the activation functions became."""
    start, zero = zip(*(distances(cell) for _, cell in shown), strict=True)
    if any(d is not None for d in zero):
        yield Column("size", "size", [_short(d) for d in zero], 3, explained=SIZE)
    if any(d is not None for d in start):
        yield Column("moved", "moved", [_short(d) for d in start], 3, explained=MOVED)
    rows = [row for row, _ in shown]
    yield Column(
        "alpha_near_zero", "α≈0 %", [format_percent(row["alpha_near_zero"]) for row in rows], 6, explained=NEAR
    )
    yield Column("alpha_mean", "α mean", [format_number(row["alpha_mean"]) for row in rows], 6)
    for name in ("05", "50", "95"):
        yield Column(
            f"alpha_q{name}", f"α {int(name)}%", [format_number(row[f"alpha_q{name}"]) for row in rows], DETAIL
        )


def _short(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}" if abs(value) < 100 else format_number(value)
