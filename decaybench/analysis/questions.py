"""A question: the cells that differ in strategy and decay only. One table, one figure, one family of comparisons."""

from collections.abc import Sequence
from itertools import groupby

from decaybench.analysis.cells import Cell

COMPARED = ("strategy", "weight_decay")


def question_of(cell: Cell) -> tuple[tuple[str, str], ...]:
    """Returns what the cells of one question have in common."""
    return tuple((key, str(value)) for key, value in cell.config.items() if key not in COMPARED)


def questions(found: Sequence[Cell]) -> list[slice]:
    """Divides cells, in the order of `cells`, into questions."""
    parts, start = [], 0
    for _, members in groupby(found, key=question_of):
        stop = start + len(list(members))
        parts.append(slice(start, stop))
        start = stop
    return parts
