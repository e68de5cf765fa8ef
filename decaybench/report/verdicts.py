"""Writes verdicts in words: one sentence for each kind, and in it every method of that kind."""

from collections.abc import Sequence

from decaybench.analysis.cells import short_label
from decaybench.analysis.comparison import of
from decaybench.analysis.evidence import NEW_EXAMPLES, NEW_SPLITS, THESE_EXAMPLES
from decaybench.analysis.frame import Row
from decaybench.analysis.pairs import pairs_of
from decaybench.analysis.planning import narrowest, plan
from decaybench.analysis.tuning import chosen_by
from decaybench.registry.metrics import Metric
from decaybench.report.numbers import (
    MISSING,
    change_heading,
    format_change,
    format_interval,
    format_number,
    format_value,
    heading,
    joined,
)
from decaybench.report.titles import Member, by_method

FEW_SEEDS = 10  # with fewer, a difference that is found is likely to be found too large
DECIDED = ("better", "worse")
MANY = 4  # methods of one verdict, of which more are only counted where there is little room
Metrics = tuple[Metric, ...]


def verdicts(members: Sequence[Member], metrics: Metrics, baseline: str, brief: bool = False) -> list[str]:
    """Writes the verdicts on the methods of one question.

    Args:
        members: The cells of the question with their rows.
        metrics: What is compared.
        baseline: The strategy that the others are compared with.
        brief: Whether many methods without a difference are only counted.
    """
    rows = [({**row, "strategy": short_label(names[0])}) for names, (row, _) in by_method(members)]
    judged = [row for row in rows if any(of(row, metric, "verdict") for metric in metrics)]
    several = len({row["weight_decay"] for row in judged} - {0.0}) > 1
    found: dict[str, list[str]] = {}
    ranks: dict[str, int] = {}
    for row in judged:
        decay = f" at λ {format_number(row['weight_decay'])}" if several and row["weight_decay"] else ""
        kind = _kind(row, metrics, baseline)
        ranks[kind] = min(map(_rank, _verdicts(row, metrics)))
        found.setdefault(kind, []).append(f"{row['strategy']}{decay} ({_numbers(row, metrics)})")
    sentences = []
    for kind in sorted(found, key=lambda kind: ranks[kind]):
        counted = brief and len(found[kind]) > MANY and ranks[kind] >= len(DECIDED)
        sentences.append(f"{kind}: {f'{len(found[kind])} of the rows below' if counted else ', '.join(found[kind])}.")
    lost = [r for r in rows if r["seeds"] and r["diverged"] == r["seeds"]]
    if lost:
        names = ", ".join(f"{r['strategy']} at {format_number(r['weight_decay'])}" for r in lost)
        sentences.append(f"Diverged in every seed, so that nothing can be compared: {names}.")
    decided = [row for row in judged if set(_verdicts(row, metrics)) & set(DECIDED)]
    if any(row["pairs"] < FEW_SEEDS for row in decided):
        sentences.append(f"With fewer than {FEW_SEEDS} seeds a difference that is found tends to be found too large.")
    return sentences + _limits(members, metrics[0], baseline) + _scopes(judged, metrics)


def _verdicts(row: Row, metrics: Metrics) -> list[str]:
    """Returns the verdicts of a row; "cannot tell" where there is none."""
    return [of(row, metric, "verdict") or "cannot tell" for metric in metrics]


def _scopes(judged: Sequence[Row], metrics: Metrics) -> list[str]:
    """Says what is about these test examples only."""
    first, sentences = metrics[0], []
    fixed = [row for row in judged if of(row, first, "speaks_about") == THESE_EXAMPLES]
    if fixed:
        which = (
            "All this" if len(fixed) == len(judged) else "What is said of " + ", ".join(r["strategy"] for r in fixed)
        )
        sentences.append(f"{which} is about these test examples; it says nothing about new ones.")
    for metric in metrics[1:]:
        large = [
            row["strategy"]
            for row in judged
            if of(row, first, "speaks_about") == NEW_EXAMPLES and of(row, metric, "speaks_about") == THESE_EXAMPLES
        ]
        if large:
            sentences.append(
                f"The {metric.title} of {', '.join(large)} is not recorded for each example, or too large to be; what "
                "is said of it is about these test examples."
            )
    return sentences


def _limits(members: Sequence[Member], metric: Metric, baseline: str) -> list[str]:
    """Says where test examples, and not seeds, are why nothing can be told."""
    open_rows = {
        id(cell)
        for row, cell in members
        if of(row, metric, "verdict") == "cannot tell" and of(row, metric, "speaks_about") == NEW_EXAMPLES
    }
    widths = [
        (pairs.first.config["strategy"], width, of(row, metric, "baseline"))
        for pairs in pairs_of([cell for _, cell in members], baseline)
        for row in [next(row for row, cell in members if cell is pairs.first)]
        if id(pairs.first) in open_rows and (width := narrowest(pairs, metric)) is not None
    ]
    if not widths:
        return []
    least = min((width, base) for _, width, base in widths)
    names = ", ".join(dict.fromkeys(name for name, _, _ in widths))
    return [
        f"For {names} the test examples are the limit: with any number of seeds the intervals of {metric.title} stay "
        f"±{format_change(metric, *least, signed=False)}{metric.unit} or wider."
    ]


def plans(members: Sequence[Member], metric: Metric, baseline: str, half: float, fixed: bool) -> list[str]:
    """Says how many seeds, or test examples, the differences of one question would take to be known to ±half.

    Args:
        members: The cells of the question.
        metric: What is compared.
        baseline: The strategy that the others are compared with.
        half: Half the width of the intervals, in the unit in which differences are written.
        fixed: Whether they are to be about these test examples.
    """
    sentences, width = [], f"±{half:g}{metric.unit}"
    for needed in plan([cell for _, cell in members], metric, baseline, half, fixed):
        name = f"{needed.strategy} at {format_number(needed.weight_decay)}"
        if needed.scope != NEW_EXAMPLES:
            seeds = (
                "no number of seeds, since their splits overlap"
                if needed.seeds is None
                else f"{needed.seeds:,.0f} seeds"
            )
            where = " on these test examples" if needed.scope == THESE_EXAMPLES else " with splits of their own"
            sentences.append(f"{width} for {name}{where}: {seeds}.")
            continue
        seeds = "no number of seeds, since the test examples are too few"
        examples = "no number of test examples, since the seeds are too few"
        seeds = seeds if needed.seeds is None else f"{needed.seeds:,.0f} seeds with these test examples"
        examples = examples if needed.examples is None else f"{needed.examples:,.0f} test examples with these seeds"
        sentences.append(f"{width} for {name}: {seeds}; {examples}.")
    return sentences


def _rank(verdict: str) -> int:
    """Returns the place of a verdict: what is decided comes first."""
    order = ("better", "worse", "the same", "never")
    return next((i for i, start in enumerate(order) if verdict.startswith(start)), len(order))


def _kind(row: Row, metrics: Metrics, baseline: str) -> str:
    """Says in a few words what all metrics show together."""
    found: dict[str, list[str]] = {}
    for metric in metrics:
        if metric.name in row and of(row, metric, "difference") is not None:
            found.setdefault(of(row, metric, "verdict") or "cannot tell", []).append(metric.title)
    clauses = []
    for number, (verdict, titles) in enumerate(found.items()):
        these = joined(titles)
        against = f" than {baseline}" if not number else ""
        if verdict in DECIDED:
            clauses.append(f"{verdict}{against} in {these}")
        elif verdict == "never differed":
            everywhere = len(titles) == len(found[verdict]) == len(metrics)
            seeds_only = of(row, metrics[0], "speaks_about") == THESE_EXAMPLES
            where = (" in any seed" if seeds_only else " on any test example of any seed") if everywhere else ""
            clauses.append(
                (f"never differed from {baseline} in {these}" if not number else f"never differed in {these}") + where
            )
        elif verdict == "cannot tell":
            clauses.append(f"no verdict on {these}")
        else:  # the same within …
            clauses.append(f"the same{against.replace(' than', ' as')} in {these} {verdict.removeprefix('the same ')}")
    text = "; ".join(clauses)
    return text[:1].upper() + text[1:]


def _numbers(row: Row, metrics: Metrics) -> str:
    """Writes the difference in each metric, with its p-value, or with what would have shown."""
    parts = []
    for number, metric in enumerate(metrics):
        verdict, base = of(row, metric, "verdict"), of(row, metric, "baseline")
        if verdict is None:
            continue
        name = f"{metric.title} " if number or metric.scale != "percent" else ""
        shown = f"{name}{format_change(metric, of(row, metric, 'difference'), base)}{metric.unit}"
        seen = format_change(metric, of(row, metric, "detectable"), base, signed=False)
        parts.append(shown + _how_sure(verdict, of(row, metric, "p_holm"), seen, metric.unit))
    if row["pairs"] < row["seeds"]:
        parts.append(f"over {row['pairs']} of {row['seeds']} seeds")
    return "; ".join(parts)


def _how_sure(verdict: str, p: float | None, seen: str, unit: str) -> str:
    if verdict in DECIDED and p is not None:
        return ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    known = verdict == "cannot tell" and seen != MISSING
    return f" where {seen}{unit if unit == '%' else ''} would have shown" if known else ""


Table = tuple[str, list[str], list[list[str]]]


def tuned_tables(
    questions: Sequence[Sequence[Row]], metric: Metric, baseline: str, narrow: bool = False
) -> list[Table]:
    """Returns a table of each method at its own best, for each question: title, columns, lines."""
    keys = dict.fromkeys(key for rows in questions for key in rows[0] if key in rows[0])
    first = [rows[0] for rows in questions]
    apart = ("lr", "weight_decay", "strategy", *NAMED, *RESULTS)
    varying = [k for k in keys if k not in apart and len({str(row.get(k)) for row in first}) > 1]
    return [_tuned_table(rows, metric, baseline, narrow, varying) for rows in questions]


def _scope_of(rows: Sequence[Row]) -> str:
    scope = str(rows[0]["speaks_about"])
    if scope == NEW_SPLITS:
        return f"and {scope}, corrected for their overlap"
    return f"on {scope}" if scope == THESE_EXAMPLES else f"and {scope}"


NAMED = ("dataset", "network", "activation", "optimizer", "script")
RESULTS = (
    *("seeds", "candidates", "left_out", "chosen_again", "lr_on_edge", "weight_decay_on_edge"),
    *("speaks_about", "validation"),
    *("test", "test_low", "test_high", "baseline", "difference", "difference_low", "difference_high"),
)


def _tuned_table(rows: Sequence[Row], metric: Metric, baseline: str, narrow: bool, varying: Sequence[str]) -> Table:
    first = rows[0]
    parts = [*(str(first[key]) for key in NAMED if key in first)]
    parts += [f"{key}={format_number(first.get(key))}" for key in varying]
    one_rate = len({row["lr"] for row in rows}) == 1 and not any(row["lr_on_edge"] for row in rows)
    if one_rate and first["lr"] is not None:
        parts.append(f"lr {format_number(first['lr'])}")
    title = " · ".join(parts)
    title += f" · each at its own best of {max(r['candidates'] for r in rows)} by {chosen_by(metric).replace('_', ' ')}"
    remarks = [f"{first['seeds']} seed{'s' * (first['seeds'] != 1)}"]
    if any(row["test_low"] is not None for row in rows):
        remarks.append(f"intervals by bootstrap, uncorrected, over new seeds {_scope_of(rows)}")
    if any(row["lr_on_edge"] or row["weight_decay_on_edge"] for row in rows):
        remarks.append("*: nothing beyond it was tried")
    if any(row["left_out"] for row in rows):
        remarks.append("what diverged in a seed is no candidate")
    title += f" ({'; '.join(remarks)})"
    columns: dict[str, list[str]] = {"strategy": [row["strategy"] for row in rows]}
    if not one_rate:
        columns["lr"] = [format_number(row["lr"]) + "*" * row["lr_on_edge"] for row in rows]
    columns["λ"] = [format_number(row["weight_decay"]) + "*" * row["weight_decay_on_edge"] for row in rows]
    columns["chosen again %"] = [f"{100 * row['chosen_again']:.0f}" for row in rows]
    percent = " %" if metric.scale == "percent" else ""
    if not narrow:
        columns[f"validation{percent}"] = [format_value(metric, row["validation"]) for row in rows]
    columns[heading(metric)] = [format_value(metric, row["test"]) for row in rows]
    if not narrow:
        columns["95% interval"] = [format_interval(metric, row["test_low"], row["test_high"]) for row in rows]
    columns[change_heading(metric, baseline)] = [
        difference_text(metric, row["baseline"], *(row[f"difference{end}"] for end in ("", "_low", "_high")))
        for row in rows
    ]
    return title, list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def difference_text(
    metric: Metric, baseline: float | None, value: float | None, low: float | None, high: float | None
) -> str:
    """Writes a difference with its interval, in the unit in which differences of a metric are written."""
    if value is None or baseline is None:
        return MISSING
    ends = "" if low is None or high is None else _ends(metric, baseline, low, high)
    return f"{format_change(metric, value, baseline)} {ends}".rstrip()


def _ends(metric: Metric, baseline: float, low: float, high: float) -> str:
    return f"[{format_change(metric, low, baseline)}, {format_change(metric, high, baseline)}]"


def difference_of(row: Row, metric: Metric) -> str:
    """Writes the difference of a row in a metric, with its interval."""
    ends = (of(row, metric, f"difference{end}") for end in ("", "_low", "_high"))
    return difference_text(metric, of(row, metric, "baseline"), *ends)
