"""Folded names stand for exactly the parameters that they count."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decaybench.report.folded import folded


def stands_for(pattern: str, names: list[str]) -> list[str]:
    """Returns the names that a reader would take a pattern for."""
    parts = []
    for word in pattern.split("."):
        braces = re.fullmatch(r"\{([\d,]+)\}", word)
        parts.append(r"\d+" if word == "*" else f"({braces[1].replace(',', '|')})" if braces else re.escape(word))
    return [name for name in names if re.fullmatch(r"\.".join(parts), name)]


def test_blocks_are_one_row() -> None:
    names = [f"stages.{s}.blocks.{b}.mlp.act.scale" for s in range(4) for b in range(6)] + ["head.weight"]
    found = folded(names, ["a"] * 24 + ["w"], names, names)
    assert [(name, count) for name, _, count in found] == [("stages.*.blocks.*.mlp.act.scale", 24), ("head.weight", 1)]


def test_a_star_that_would_name_others_is_none() -> None:
    names = ["0.weight", "1.weight", "2.weight", "3.weight"]
    found = folded(names, ["conv", "act", "conv", "act"], names, names)
    assert [(name, count) for name, _, count in found] == [("{0,2}.weight", 2), ("{1,3}.weight", 2)]
    # Two numbers vary, and not all of their pairs are meant: every parameter has its own row.
    names = [f"{a}.x.{b}.w" for a, b in itertools.product(range(2), repeat=2)]
    found = folded(names, ["p", "q", "q", "p"], names, names)
    assert sorted(name for name, _, _ in found) == names


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "0", "1", "2"]), min_size=1, max_size=4).map(".".join),
            st.sampled_from("xy"),
        ),
        min_size=1,
        max_size=14,
        unique_by=lambda pair: pair[0],
    ),
    st.lists(st.booleans(), min_size=14, max_size=14),
)
def test_a_pattern_stands_for_what_it_counts_whatever_the_names(
    pairs: list[tuple[str, str]], shown: list[bool]
) -> None:
    everything = [name for name, _ in pairs]
    kept = [pair for pair, keep in zip(pairs, shown, strict=False) if keep] or pairs
    names = [name for name, _ in kept]
    found = folded(names, [kind for _, kind in kept], kept, everything)
    assert sum(count for _, _, count in found) == len(names)
    for pattern, (_, kind), count in found:
        meant = stands_for(pattern, everything) if count > 1 else [pattern]
        assert len(meant) == count
        assert all((name, kind) in kept for name in meant)


@pytest.mark.parametrize("names", [["a.b"], ["x"]])
def test_a_single_parameter_keeps_its_name(names: list[str]) -> None:
    assert folded(names, ["k"], names, names) == [(names[0], names[0], 1)]


def test_a_star_stands_for_every_word_that_a_reader_may_take_it_for() -> None:
    names = ["1.act.weight", "2.act.weight", "x.act.weight"]
    found = folded(names, ["a", "a", "b"], names, names)
    assert [(name, count) for name, _, count in found] == [("{1,2}.act.weight", 2), ("x.act.weight", 1)]
