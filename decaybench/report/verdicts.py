"""Writes verdicts in words: one sentence for each kind, and in it every method of that kind."""

from collections.abc import Sequence

from decaybench.analysis.evidence import NEW_IMAGES, NEW_SPLITS, THESE_IMAGES
from decaybench.analysis.frame import Row
from decaybench.analysis.pairs import pairs_of
from decaybench.analysis.planning import narrowest, plan
from decaybench.report.numbers import MISSING, format_interval, format_number, format_percent
from decaybench.report.titles import Member, by_method

FEW_SEEDS = 10  # with fewer, a difference that is found is likely to be found too large
DECIDED = ("better", "worse")


def verdicts(members: Sequence[Member], baseline: str) -> list[str]:
    """Writes the verdicts on the methods of one question."""
    rows = [({**row, "strategy": " = ".join(names)}) for names, (row, _) in by_method(members)]
    judged = [row for row in rows if row["verdict"] or row["loss_verdict"]]
    several = len({row["weight_decay"] for row in judged} - {0.0}) > 1
    found: dict[str, list[str]] = {}
    for row in judged:
        decay = f" at {format_number(row['weight_decay'])}" if several and row["weight_decay"] else ""
        found.setdefault(_kind(row, baseline), []).append(f"{row['strategy']}{decay} ({_numbers(row)})")
    ordered = sorted(found, key=lambda kind: next(i for i, start in enumerate(ORDER) if kind.startswith(start)))
    sentences = [f"{kind}: {', '.join(found[kind])}." for kind in ordered]
    lost = [r for r in rows if r["seeds"] and r["diverged"] == r["seeds"]]
    if lost:
        names = ", ".join(f"{r['strategy']} at {format_number(r['weight_decay'])}" for r in lost)
        sentences.append(f"Diverged in every seed, so that nothing can be compared: {names}.")
    decided = [row for row in judged if {row["verdict"], row["loss_verdict"]} & set(DECIDED)]
    if any(row["pairs"] < FEW_SEEDS for row in decided):
        sentences.append(f"With fewer than {FEW_SEEDS} seeds a difference that is found tends to be found too large.")
    sentences += _limits(members, baseline)
    fixed = [row for row in judged if row["speaks_about"] == THESE_IMAGES]
    if fixed:
        which = (
            "All this" if len(fixed) == len(judged) else "What is said of " + ", ".join(r["strategy"] for r in fixed)
        )
        sentences.append(f"{which} is about these test images; it says nothing about new ones.")
    large = [
        r["strategy"] for r in judged if r["speaks_about"] == NEW_IMAGES and r["loss_speaks_about"] == THESE_IMAGES
    ]
    if large:
        sentences.append(
            f"Losses of {', '.join(large)} are too large to be recorded image by image; what is said of them is about "
            "these test images."
        )
    return sentences


def _limits(members: Sequence[Member], baseline: str) -> list[str]:
    """Says where test images, and not seeds, are why accuracy cannot tell."""
    open_rows = {
        id(cell) for row, cell in members if row["verdict"] == "cannot tell" and row["speaks_about"] == NEW_IMAGES
    }
    widths = [
        (pairs.first.config["strategy"], width)
        for pairs in pairs_of([cell for _, cell in members], baseline)
        if id(pairs.first) in open_rows and (width := narrowest(pairs)) is not None
    ]
    if not widths:
        return []
    least = min(width for _, width in widths)
    names = ", ".join(dict.fromkeys(name for name, _ in widths))
    return [
        f"For {names} the test images are the limit: with any number of seeds the intervals of accuracy stay "
        f"±{format_percent(least)} points or wider."
    ]


def plans(members: Sequence[Member], baseline: str, half: float, fixed: bool) -> list[str]:
    """Says how many seeds, or test images, the differences of one question would take to be known to ±half.

    Args:
        members: The cells of the question.
        baseline: The strategy that the others are compared with.
        half: Half the width of the intervals, a fraction.
        fixed: Whether they are to be about these test images.
    """
    sentences = []
    for needed in plan([cell for _, cell in members], baseline, half, fixed):
        name = f"{needed.strategy} at {format_number(needed.weight_decay)}"
        if needed.scope != NEW_IMAGES:
            seeds = (
                "no number of seeds, since their splits overlap"
                if needed.seeds is None
                else f"{needed.seeds:,.0f} seeds"
            )
            where = " on these test images" if needed.scope == THESE_IMAGES else " with splits of their own"
            sentences.append(f"±{100 * half:g} points for {name}{where}: {seeds}.")
            continue
        seeds = "no number of seeds, since the test images are too few"
        images = "no number of test images, since the seeds are too few"
        seeds = seeds if needed.seeds is None else f"{needed.seeds:,.0f} seeds with these test images"
        images = images if needed.images is None else f"{needed.images:,.0f} test images with these seeds"
        sentences.append(f"±{100 * half:g} points for {name}: {seeds}; {images}.")
    return sentences


ORDER = (
    *("Better", "Worse", "Accuracy and", "No verdict on accuracy; test loss is", "Accuracy is", "Accuracy never"),
    *("Never", "No verdict on accuracy; test loss", "No verdict"),
)


def _kind(row: Row, baseline: str) -> str:
    """Says in a few words what accuracy and loss show together."""
    accuracy, loss = row["verdict"], row["loss_verdict"]
    if accuracy in DECIDED and loss in DECIDED:
        if accuracy != loss:
            return f"Accuracy and test loss disagree about {baseline}"
        return f"{accuracy.capitalize()} than {baseline} in accuracy and test loss"
    if accuracy in DECIDED:
        return f"{accuracy.capitalize()} than {baseline} in accuracy{_of_loss(loss, baseline)}"
    if accuracy == loss == "never differed":
        where = "in any seed" if row["speaks_about"] == THESE_IMAGES else "on any test image of any seed"
        return f"Never differed from {baseline} {where}"
    if accuracy in (None, "cannot tell"):
        if loss in (None, "cannot tell"):
            return "No verdict on accuracy and test loss" if loss else "No verdict on accuracy"
        return f"No verdict on accuracy{_of_loss(loss, baseline)}"
    if accuracy == "never differed":
        return f"Accuracy never differed from {baseline}'s{_of_loss(loss, baseline)}"
    return f"Accuracy is that of {baseline} {accuracy.removeprefix('the same ')}{_of_loss(loss, baseline)}"


def _of_loss(verdict: str | None, baseline: str) -> str:
    """Says what the loss shows, after what accuracy shows."""
    if verdict is None:
        return ""
    if verdict in DECIDED:
        return f"; test loss is {'lower' if verdict == 'better' else 'higher'} than {baseline}'s"
    if verdict == "cannot tell":
        return "; no verdict on test loss"
    if verdict == "never differed":
        return "; test loss never differed"
    return f"; test loss is that of {baseline} {verdict.removeprefix('the same ')}"


def _numbers(row: Row) -> str:
    """Writes both differences, each with its p-value, or with what would have shown."""
    parts = []
    if row["verdict"]:
        shown = f"{format_percent(row['difference'], signed=True)} points"
        parts.append(shown + _how_sure(row["verdict"], row["p_holm"], format_percent(row["detectable"])))
    if row["loss_verdict"]:
        change, seen = (share_of_loss(row, row[f"loss_{key}"]) for key in ("difference", "detectable"))
        sure = _how_sure(row["loss_verdict"], row["loss_p_holm"], MISSING if seen is None else f"{in_percent(seen)}%")
        parts.append(f"loss {in_percent(change)}%{sure}")
    if row["pairs"] < row["seeds"]:
        parts.append(f"over {row['pairs']} of {row['seeds']} seeds")
    return "; ".join(parts)


def _how_sure(verdict: str, p: float | None, seen: str) -> str:
    if verdict in DECIDED and p is not None:
        return ", p < 0.001" if p < 0.001 else f", p {p:.3f}"
    known = verdict == "cannot tell" and seen != MISSING
    return f" where {seen.lstrip('+')} would have shown" if known else ""


def in_percent(share: float | None) -> str:
    """Writes a share in percent, with its sign and one decimal."""
    return MISSING if share is None else f"{100 * share:+.1f}".replace("-", "−")


def share_of_loss(row: Row, value: float | None) -> float | None:
    """Returns a difference in loss as a share of the baseline's loss."""
    baseline = row["baseline_loss"]
    return float(value / baseline) if value is not None and baseline else None


Table = tuple[str, list[str], list[list[str]]]


def tuned_tables(questions: Sequence[Sequence[Row]], baseline: str, narrow: bool = False) -> list[Table]:
    """Returns a table of each method at its own best, for each question: title, columns, lines."""
    keys = dict.fromkeys(key for rows in questions for key in rows[0] if key in rows[0])
    first = [rows[0] for rows in questions]
    apart = ("lr", "weight_decay", "strategy", *NAMED, *RESULTS)
    varying = [k for k in keys if k not in apart and len({str(row.get(k)) for row in first}) > 1]
    return [_tuned_table(rows, baseline, narrow, varying) for rows in questions]


def _scope_of(rows: Sequence[Row]) -> str:
    scope = str(rows[0]["speaks_about"])
    if scope == NEW_SPLITS:
        return f"and {scope}, corrected for their overlap"
    return f"on {scope}" if scope == THESE_IMAGES else f"and {scope}"


NAMED = ("dataset", "network", "activation", "optimizer")
RESULTS = (
    *("seeds", "candidates", "left_out", "chosen_again", "on_edge", "speaks_about", "validation_accuracy"),
    *("test_accuracy", "test_accuracy_low", "test_accuracy_high", "difference", "difference_low", "difference_high"),
)


def _tuned_table(rows: Sequence[Row], baseline: str, narrow: bool, varying: Sequence[str]) -> Table:
    first = rows[0]
    parts = [*(str(first[key]) for key in NAMED), *(f"{key}={format_number(first.get(key))}" for key in varying)]
    title = " · ".join(parts)
    title += f" · each at its own best of {max(r['candidates'] for r in rows)} by validation"
    remarks = [f"{first['seeds']} seed{'s' * (first['seeds'] != 1)}"]
    if any(row["test_accuracy_low"] is not None for row in rows):
        remarks.append(f"intervals by bootstrap, uncorrected, over new seeds {_scope_of(rows)}")
    if any(row["on_edge"] for row in rows):
        remarks.append("*: nothing beyond it was tried")
    if any(row["left_out"] for row in rows):
        remarks.append("what diverged in a seed is no candidate")
    title += f" ({'; '.join(remarks)})"
    columns: dict[str, list[str]] = {"strategy": [row["strategy"] for row in rows]}
    if len({row["lr"] for row in rows}) > 1:
        columns["lr"] = [format_number(row["lr"]) for row in rows]
    columns["decay"] = [format_number(row["weight_decay"]) + "*" * row["on_edge"] for row in rows]
    columns["chosen again %"] = [f"{100 * row['chosen_again']:.0f}" for row in rows]
    if not narrow:
        columns["validation %"] = [format_percent(row["validation_accuracy"]) for row in rows]
    columns["test %"] = [format_percent(row["test_accuracy"]) for row in rows]
    if not narrow:
        columns["95% interval"] = [format_interval(row["test_accuracy_low"], row["test_accuracy_high"]) for row in rows]
    columns[f"− {baseline}"] = [difference_text(row) for row in rows]
    return title, list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def difference_text(row: Row) -> str:
    """Writes a difference in accuracy with its interval, in percentage points."""
    interval = format_interval(row["difference_low"], row["difference_high"], signed=True)
    return f"{format_percent(row['difference'], signed=True)} {interval}".rstrip()
