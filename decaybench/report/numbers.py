"""Writes numbers for people, and tables as Markdown and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decaybench.errors import one_line, printable
from decaybench.registry.metrics import Metric

if TYPE_CHECKING:
    import pandas as pd
    from rich.text import Text

MISSING = "–"
PIPE_WIDTH = 160  # columns of a table that goes to a file or to another program


def rich_text(value: str, style: str = "") -> "Text":
    """Makes a rich ``Text``, in which nothing is markup and nothing controls the terminal."""
    from rich.text import Text

    return Text(one_line(value), style=style)


def format_percent(value: float | None, signed: bool = False) -> str:
    """Writes a fraction in percent."""
    if value is None:
        return MISSING
    shown = round(100 * value, 9)  # so that equal means, computed in two orders, are rounded alike
    return f"{shown:{'+.2f' if signed else '.2f'}}".replace("-", "−")


def format_value(metric: Metric, value: float | None) -> str:
    """Writes a value of a metric: fractions in percent, others with at least three digits."""
    if value is None or metric.scale == "percent":
        return format_percent(value)
    return f"{value:.3f}".replace("-", "−") if 0.1 <= abs(value) < 1000 or not value else format_number(value)


def format_interval(metric: Metric, low: float | None, high: float | None) -> str:
    """Writes an interval of values of a metric."""
    return "" if low is None or high is None else f"[{format_value(metric, low)}, {format_value(metric, high)}]"


def half_width(metric: Metric, value: float | None, low: float | None, high: float | None) -> str:
    """Writes how far an interval reaches from its value, ``±0.27``; of an interval cut at one end, the other."""
    if value is None or low is None or high is None:
        return ""
    half = max(value - low, high - value)
    return "±" + (
        "0.000" if metric.scale != "percent" and 0 < half < 0.0005 and abs(value) >= 0.1 else format_value(metric, half)
    )


def format_change(metric: Metric, value: float | None, baseline: float | None, signed: bool = True) -> str:
    """Writes a difference in a metric: in points, in percent of the baseline's, or as it is.

    Args:
        metric: The metric.
        value: The difference.
        baseline: Mean of the baseline.
        signed: Whether a positive one gets a sign.
    """
    if value is None or (metric.scale == "relative" and not baseline):
        return MISSING
    if metric.scale == "percent":
        return format_percent(value, signed)
    if metric.scale == "relative":
        return f"{100 * value / abs(baseline or 1):{'+.1f' if signed else '.1f'}}".replace("-", "−")
    sign = "+" if signed and value > 0 else ""
    return sign + format_number(float(f"{value:.3g}"))


def heading(metric: Metric) -> str:
    """Writes the heading of a column of values."""
    return metric.title + (" %" if metric.scale == "percent" else "")


def change_heading(metric: Metric, baseline: str) -> str:
    """Writes the heading of a column of differences."""
    return f"vs {baseline}" + (", %" if metric.scale == "relative" else "")


def joined(words: Sequence[str]) -> str:
    """Joins words as a sentence does: a, b and c."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def format_number(value: Any) -> str:
    """Writes any number or text, with three significant digits where more do not fit."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        rounded = f"{value:.3g}" if value and not 0.001 <= abs(value) < 10000 else f"{value:.3f}"
        return (
            f"{value:g}" if math.isclose(float(f"{value:g}"), value) and len(f"{value:g}") < 6 else rounded
        ).replace("-", "−")
    return str(value)


def histogram(counts: list[int]) -> str:
    """Writes counts as a line of blocks; an empty bin is a blank."""
    top = max(counts, default=0)
    blocks = " ▁▂▃▄▅▆▇█"
    return "".join(blocks[math.ceil(8 * c / top)] if c else " " for c in counts) if top else ""


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Writes the lines of a Markdown table, whatever the texts hold."""

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(_in_markdown(v) for v in values) + " |"

    return [line(header), "|" + " --- |" * len(header), *(line(row) for row in body)]


def _in_markdown(text: str) -> str:
    """Writes a text so that it neither ends a cell nor is a tag."""
    return printable(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _harmless(value: Any) -> Any:
    """Marks a text that a spreadsheet would take for a formula as text."""
    return (
        f"'{printable(value)}"
        if isinstance(value, str) and value.lstrip("\ufeff \u200b")[:1] in "=+-@\t\r" and value.strip()
        else (printable(value) if isinstance(value, str) else value)
    )


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows of the same keys as comma-separated values."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def csv_rows(frame: "pd.DataFrame") -> str:
    """Writes a DataFrame as comma-separated values; what is missing is empty."""
    whole = frame.astype(object).where(frame.notna(), None)
    return csv_table([{str(key): value for key, value in row.items()} for row in whole.to_dict("records")])
