"""Writes verdicts in words."""

from collections.abc import Sequence

from decaybench.analysis.frame import Row
from decaybench.report.numbers import format_interval, format_number, format_percent

ORDER = ("better", "worse", "the same", "not enough")


def verdicts(rows: Sequence[Row], baseline: str) -> list[str]:
    """Writes one sentence for each kind of verdict among the rows of one question."""
    found: dict[str, list[str]] = {}
    several = len({row["weight_decay"] for row in rows if row["verdict"]} - {0.0}) > 1
    for row in rows:
        if row["verdict"]:
            decay = f" at {format_number(row['weight_decay'])}" if several and row["weight_decay"] else ""
            found.setdefault(row["verdict"], []).append(f"{row['strategy']}{decay}{_why(row)}")
    ordered = sorted(found, key=lambda verdict: next(i for i, start in enumerate(ORDER) if verdict.startswith(start)))
    return [_sentence(verdict, baseline) + ": " + ", ".join(found[verdict]) + "." for verdict in ordered]


def _sentence(verdict: str, baseline: str) -> str:
    if verdict in ("better", "worse"):
        return f"{verdict.capitalize()} than {baseline}"
    if verdict.startswith("the same"):
        return f"{verdict.replace('the same', 'The same as ' + baseline, 1)}"
    return "Not enough seeds to tell"


def _why(row: Row) -> str:
    if row["verdict"] in ("better", "worse"):
        p = "" if row["p_holm"] is None else ", p < 0.001" if row["p_holm"] < 0.001 else f", p {row['p_holm']:.3f}"
        return f" ({format_percent(row['difference'], signed=True)}{p})"
    if row["verdict"].startswith("not") and row["detectable"] is not None:
        return f" ({format_percent(row['detectable'])} would have shown)"
    return ""


def tuned_table(rows: Sequence[Row], baseline: str) -> tuple[str, list[str], list[list[str]]]:
    """Returns a table of each strategy of one question at its own best: title, columns, lines."""
    first = rows[0]
    title = " · ".join(str(first[key]) for key in ("dataset", "network", "activation", "optimizer"))
    title += "" if first.get("precision", "float32") == "float32" else f" · {first['precision']}"
    title += f" · each strategy at its own best of {max(r['candidates'] for r in rows)} by validation"
    columns = ["strategy", "lr", "decay", "chosen again %", "validation %", "test %", "95% interval"]
    columns += [f"− {baseline}", "95% interval "]
    lines = [
        [
            *(format_number(row[key]) for key in ("strategy", "lr", "weight_decay")),
            f"{100 * row['chosen_again']:.0f}",
            format_percent(row["validation_accuracy"]),
            format_percent(row["test_accuracy"]),
            format_interval(row["test_accuracy_low"], row["test_accuracy_high"]),
            format_percent(row["difference"], signed=True),
            format_interval(row["difference_low"], row["difference_high"], signed=True),
        ]
        for row in rows
    ]
    return title, columns, lines
