"""Writes verdicts in words: one sentence for each kind, and in it every method of that kind."""

from collections.abc import Sequence

from decaybench.analysis.comparison import plan
from decaybench.analysis.evidence import THESE_IMAGES
from decaybench.analysis.frame import Row
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
    decided = [row for row in judged if {row["verdict"], row["loss_verdict"]} & set(DECIDED)]
    if any(row["seeds"] < FEW_SEEDS for row in decided):
        sentences.append(f"With fewer than {FEW_SEEDS} seeds a difference that is found tends to be found too large.")
    if any(row["speaks_about"] == THESE_IMAGES for row in judged):
        sentences.append("All this is about these test images; it says nothing about new ones.")
    return sentences


def plans(members: Sequence[Member], baseline: str, half: float) -> list[str]:
    """Says how many seeds, or test images, the differences of one question would take to be known to ±half."""
    sentences = []
    for needed in plan([cell for _, cell in members], baseline, half):
        name = f"{needed.strategy} at {format_number(needed.weight_decay)}"
        seeds = "no number of seeds, since the test images are too few"
        images = "no number of test images, since the seeds are too few"
        seeds = seeds if needed.seeds is None else f"{needed.seeds:,.0f} seeds with these test images"
        images = images if needed.images is None else f"{needed.images:,.0f} test images with these seeds"
        sentences.append(f"±{100 * half:g} points for {name}: {seeds}; {images}.")
    return sentences


ORDER = (*("Better", "Worse", "Accuracy and", "Accuracy cannot", "Accuracy is", "Accuracy never", "The same", "Never"),)


def _kind(row: Row, baseline: str) -> str:
    """Says in a few words what accuracy and loss show together."""
    accuracy, loss = row["verdict"], row["loss_verdict"]
    if accuracy in DECIDED and loss in DECIDED:
        if accuracy != loss:
            return f"Accuracy and test loss disagree about {baseline}"
        return f"{accuracy.capitalize()} than {baseline} in accuracy and test loss"
    if accuracy in DECIDED:
        return f"{accuracy.capitalize()} than {baseline} in accuracy"
    if loss in DECIDED:
        lower = "lower" if loss == "better" else "higher"
        return f"{_of_accuracy(accuracy, baseline)}; test loss is {lower}"
    if accuracy == loss == "never differed":
        return f"Never differed from {baseline}, on no test image of any seed"
    if accuracy != "cannot tell" and loss == "cannot tell":
        return f"{_of_accuracy(accuracy, baseline)}; test loss cannot tell"
    if accuracy == "cannot tell":
        also = "" if loss in (None, "cannot tell") else f"; test loss {loss.replace('the same', 'is the same', 1)}"
        return f"Accuracy cannot tell them from {baseline}{also}"
    also = "" if loss is None else f", test loss {loss.removeprefix('the same ')}"
    return f"The same as {baseline}: accuracy {(accuracy or '').removeprefix('the same ')}{also}"


def _of_accuracy(verdict: str | None, baseline: str) -> str:
    if verdict is None or verdict == "cannot tell":
        return f"Accuracy cannot tell them from {baseline}"
    if verdict == "never differed":
        return f"Accuracy never differed from {baseline}"
    return f"Accuracy is {verdict.replace('the same', f'that of {baseline}', 1)}"


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
    if value is None or row["loss_difference"] is None:
        return None
    baseline = row["test_loss"] - row["loss_difference"]
    return float(value / baseline) if baseline > 0 else None


def tuned_table(rows: Sequence[Row], baseline: str, narrow: bool = False) -> tuple[str, list[str], list[list[str]]]:
    """Returns a table of each method of one question at its own best: title, columns, lines."""
    first = rows[0]
    title = " · ".join(str(first[key]) for key in ("dataset", "network", "activation", "optimizer"))
    title += "" if first.get("precision", "float32") == "float32" else f" · {first['precision']}"
    title += f" · each at its own best of {max(r['candidates'] for r in rows)} by validation, on these images"
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
    if any(row["on_edge"] for row in rows):
        title += " (*: nothing beyond it was tried)"
    return title, list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def difference_text(row: Row) -> str:
    """Writes a difference in accuracy with its interval, in percentage points."""
    interval = format_interval(row["difference_low"], row["difference_high"], signed=True)
    return f"{format_percent(row['difference'], signed=True)} {interval}".rstrip()
