"""Titles of questions, and the methods in them as people read them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from decaybench.analysis.cells import Cell
from decaybench.analysis.comparison import CONFIG_COLUMNS, Summary
from decaybench.analysis.frame import Row
from decaybench.analysis.questions import questions
from decaybench.errors import one_line
from decaybench.report.numbers import format_number

Member = tuple[Row, Cell]


class Question(NamedTuple):
    """One question of a report, with a title that says everything its cells have in common.

    Attributes:
        title: Data set, network, activation, optimizer, learning rate, epochs, and whatever else the study varies.
        members: Its cells with their rows.
    """

    title: str
    members: list[Member]


def titled(summary: Summary) -> list[Question]:
    """Divides a report into its questions."""
    members = list(zip(summary.rows, summary.cells, strict=True))
    parts = [members[part] for part in questions(summary.cells)]
    return [Question(_title(part[0], summary.varying), part) for part in parts]


def _title(member: Member, others: Sequence[str]) -> str:
    row, cell = member
    varying = [f"{key}={'none' if row[key] is None else format_number(row[key])}" for key in others if key != "script"]
    named = [str(cell.config["script"])] if "script" in cell.config else []
    named += [str(row[key]) for key in (*CONFIG_COLUMNS[:3], "optimizer") if row[key] is not None]
    if row["lr"] is not None:
        named.append(f"lr {format_number(row['lr'])}")
    if row["epochs"] is not None:
        named.append(f"{row['epochs']} epoch{'s' * (row['epochs'] != 1)}")
    return one_line(" · ".join([*named, *varying]))


def by_method(members: Sequence[Member]) -> Iterator[tuple[list[str], Member]]:
    """Yields each method of a question once: the names of all its strategies, and the first cell."""
    found: dict[tuple[str, float], list[Member]] = {}
    for member in members:
        found.setdefault((member[0]["method"], member[0]["weight_decay"]), []).append(member)
    for same in found.values():
        yield [str(row["strategy"]) for row, _ in same], same[0]


def apart(titles: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Divides titles into what all have in common, and the fewest words that tell each of them apart."""
    parts = {title: title.split(" · ") for title in titles}
    common = [word for word in (next(iter(parts.values())) if parts else ()) if all(word in p for p in parts.values())]
    rest = {title: [word for word in p if word not in common] for title, p in parts.items()}
    for i in range(max(map(len, rest.values()), default=0) - 1, -1, -1):
        fewer = {title: words[:i] + words[i + 1 :] for title, words in rest.items()}
        if len(set(map(tuple, fewer.values()))) == len(titles) > 1:
            rest = fewer
    return " · ".join(common), {title: " · ".join(words) for title, words in rest.items()}
