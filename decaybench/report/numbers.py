"""How numbers are written for people."""

import math
from typing import Any

MISSING = "–"


def points(low: float | None, high: float | None, signed: bool = False) -> str:
    """An interval of fractions in percentage points."""
    if low is None or high is None:
        return ""
    form = "+.2f" if signed else ".2f"
    return f"[{100 * low:{form}}, {100 * high:{form}}]".replace("-", "−")


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction in percent."""
    if value is None:
        return MISSING
    return f"{100 * value:{'+.2f' if signed else '.2f'}}".replace("-", "−")


def plain(value: Any) -> str:
    """Any number or text, three significant digits where they do not fit."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        rounded = f"{value:.3g}" if value and not 0.001 <= abs(value) < 10000 else f"{value:.3f}"
        return (
            f"{value:g}" if math.isclose(float(f"{value:g}"), value) and len(f"{value:g}") < 6 else rounded
        ).replace("-", "−")
    return str(value)


def histogram(counts: list[int]) -> str:
    """Counts as a line of blocks; an empty bin is a blank."""
    top = max(counts, default=0)
    blocks = " ▁▂▃▄▅▆▇█"
    return "".join(blocks[math.ceil(8 * c / top)] if c else " " for c in counts) if top else ""
