"""Folds repeated blocks: parameters that differ in numbers of their names only are one row."""

import re
from collections.abc import Hashable, Sequence
from typing import TypeVar

Row = TypeVar("Row")


def folded(
    names: Sequence[str], alike: Sequence[Hashable], rows: Sequence[Row], everything: Sequence[str]
) -> list[tuple[str, Row, int]]:
    """Folds rows whose names differ in numbers between dots only, and which are alike in everything that is shown.

    Args:
        names: The names of parameters, ``blocks.0.act.scale``.
        alike: What is shown of each, beside its name.
        rows: The rows.
        everything: All names, also those of rows that are not shown.

    Returns:
        A name such as ``blocks.*.act.scale`` (or ``{1,3}.weight``, where ``*`` would name others, too), the first row,
        and how many rows it stands for, in the order of the first ones.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (name, what) in enumerate(zip(names, alike, strict=True)):
        groups.setdefault((re.sub(r"(?<![^.])\d+(?![^.])", "*", name), what), []).append(i)
    found = []
    for members in groups.values():
        pattern = _pattern([names[i] for i in members], everything) if len(members) > 1 else None
        if pattern is None:
            found += [(i, names[i], 1) for i in members]
        else:
            found.append((members[0], pattern, len(members)))
    return [(name, rows[i], count) for i, name, count in sorted(found)]


def _pattern(members: Sequence[str], names: Sequence[str]) -> str | None:
    """Writes a pattern that stands for these names and no others; None where there is none."""
    columns = [list(dict.fromkeys(words)) for words in zip(*(name.split(".") for name in members), strict=True)]
    varying = [i for i, words in enumerate(columns) if len(words) > 1]
    stars = [words[0] if len(words) == 1 else "*" for words in columns]
    glob = re.compile(r"\.".join(r"[^.]+" if word == "*" else re.escape(word) for word in stars))
    if sum(glob.fullmatch(name) is not None for name in names) == len(members):
        return ".".join(stars)
    if len(varying) == 1:
        return ".".join([*stars[: varying[0]], "{" + ",".join(columns[varying[0]]) + "}", *stars[varying[0] + 1 :]])
    return None
