"""Tables in a terminal: one line a row at any width, whatever names people use."""

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from decaybench.analysis.comparison import ComparisonSettings
from decaybench.report.columns import table_of
from decaybench.report.formats import FORMATS, Report
from decaybench.report.headline import headline
from decaybench.report.terminal import print_summary
from decaybench.report.titles import titled
from decaybench.results.record import Record
from made_records import made, pairs, summary_of

LONG = "a/very/deep/folder/of/mine/strategies.py:spare_everything_but_the_first_layer@0a1b2c"


def printed(records: list[Record], width: int, wide: bool = False) -> list[str]:
    out = io.StringIO()
    print_summary(summary_of(records), Console(file=out, width=width), ComparisonSettings(), wide)
    return out.getvalue().splitlines()


def rows_of(lines: list[str]) -> list[str]:
    """Returns the lines of the first table, its heading included."""
    heading = next(i for i, line in enumerate(lines) if line.startswith("strategy"))
    return lines[heading : next(i for i in range(heading, len(lines)) if not lines[i].strip())]


def renamed(records: list[Record], name: str) -> list[Record]:
    for record in records:
        if record.config["strategy"]["name"] == "exclude-alpha":
            record.config["strategy"] = {
                "name": name.partition("@")[0],
                "options": {},
                "source": name.partition("@")[2],
            }
    return records


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", ["exclude-alpha", LONG, "数据.py:特别的策略的名字非常非常长而且不会结束的那种@0a1b2c"])
def test_a_table_fits_and_a_row_is_one_line(width: int, name: str) -> None:
    records = [r for d in (0.01, 0.1) for r in pairs([0.01, 0.02, 0.03, 0.01, 0.0], weight_decay=d)]
    lines = printed(renamed(records, name), width)
    rows = rows_of(lines)
    assert max(map(cell_len, rows)) <= width
    assert sum(line.startswith("decay-all") for line in rows) == 2
    numbers = [line for line in rows[1:] if re.search(r"\d ±", line)]
    assert len(numbers) == 4  # two methods at two decays
    assert all("[" in line or "baseline" in line for line in numbers)
    assert all(line == line.rstrip() for line in rows)


def test_a_long_name_is_said_whole_below_its_table() -> None:
    lines = printed(renamed(pairs([0.01, 0.02, 0.03]), LONG), 80)
    short = [line for line in lines if "…" in line and ": " in line]
    assert any("spare_everything_but_the_first_layer" in line for line in " ".join(lines).split(". ") or short)


def test_two_long_names_stay_two_names() -> None:
    first, second = (f"my.py:{'x' * 20}_{c}_{'y' * 20}" for c in "ab")
    records = renamed(pairs([0.01, 0.02, 0.03]), first)
    others = renamed(pairs([0.02, 0.01, 0.03]), second)
    rows = rows_of(printed([*records, *(r for r in others if "my.py" in r.config["strategy"]["name"])], 80))
    names = {row.split()[0] for row in rows if "…" in row and "±" in row}
    assert len(names) == 2


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), st.sampled_from([80, 100]))
def test_no_name_breaks_a_table(name: str, width: int) -> None:
    records = renamed(pairs([0.01, 0.02, 0.03]), f"m.py:{name}")
    lines = printed(records, width)
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("strategy")) :]
    assert sum("baseline" in line and "±" in line for line in table) == 1


def test_wide_shows_what_is_left_out() -> None:
    records = pairs([0.01, 0.02, 0.03])
    narrow, wide = (rows_of(printed(records, 80, wide=wide)) for wide in (False, True))
    assert len(wide[-1]) > 120 > len(narrow[-1])
    for word in ("pairing", "interval"):
        assert word not in " ".join(narrow[:3])
        assert word in " ".join(printed(records, 80, wide=True))


def test_piped_tables_have_no_blanks_at_their_ends() -> None:
    text = FORMATS["table"].write(Report(summary_of(pairs([0.01, 0.02])), ComparisonSettings()))
    assert isinstance(text, str)
    assert not re.search(r" $", text, re.M)


def test_methods_that_are_one_are_one_row_and_named_below() -> None:
    records = [
        made(0.8 + 0.01 * s, name, s) for name in ("decay-all", "exclude-alpha", "two-optimizers") for s in range(4)
    ]
    lines = printed(records, 80)
    assert sum("±" in line and line.startswith(("exclude-alpha", "two-optimizers")) for line in lines) == 1
    assert "exclude-alpha stands for two-optimizers, too: provably the same here." in " ".join(lines)


def test_the_baseline_is_marked_and_constants_are_in_the_title() -> None:
    (question,) = titled(summary_of(pairs([0.01, 0.02, 0.03], weight_decay=0.01)))
    table = table_of(question.members, summary_of(pairs([0.01])).metrics, "decay-all")
    assert "λ 0.01" in table.common
    assert any("3 seeds" in text for text in table.common)
    assert table.baseline == [True, False]
    assert "weight_decay" not in [column.key for column in table.columns]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.05, 0.051, 0.049, 0.05, 0.052], "is better than decay-all (+5.04"),
        ([-0.05, -0.051, -0.049, -0.05, -0.052], "is worse than decay-all (−5.04"),
        ([0.0, 0.001, -0.001, 0.0005, -0.0005], "is the same within ±0.5 points as decay-all"),
        ([0.05, -0.05, 0.02, -0.02, 0.04], "gives no verdict against decay-all"),
        ([0.0, 0.0, 0.0], "never differs from decay-all"),
    ],
)
def test_the_answer_is_what_the_numbers_say(differences: list[float], expected: str) -> None:
    sentence = headline(summary_of(pairs(differences)), ComparisonSettings())[0]
    assert sentence.startswith(f"Accuracy: exclude-alpha {expected}")


def test_the_answer_counts_where_it_cannot_name_and_names_where_it_can() -> None:
    records = [
        r
        for activation in ("prelu", "kaf")
        for d in (0.01, 0.1, 1.0)
        for r in pairs(
            [0.05, 0.051, 0.049, 0.05] if d == 1.0 else [0.0001, 0.0, -0.0001, 0.0],
            activation=activation,
            weight_decay=d,
        )
    ]
    first, *_ = headline(summary_of(records), ComparisonSettings())
    assert "is better than decay-all for kaf at λ 1 (+5.00" in first
    assert "and prelu at λ 1 (+5.00" in first
    assert "is the same within ±0.5 points for kaf at λ 0.01, kaf at λ 0.1, prelu at λ 0.01 and prelu at λ 0.1" in first


def test_one_seed_and_no_baseline_give_no_verdict() -> None:
    assert headline(summary_of(pairs([0.01])), ComparisonSettings()) == ["One seed gives no verdict."]
    alone = summary_of([made(0.9, "exclude-alpha", s) for s in range(3)])
    assert headline(alone, ComparisonSettings()) == ["Nothing here can be compared with decay-all."]
    lost = [replace(r, diverged=0) for r in pairs([0.01, 0.02])]
    assert headline(summary_of(lost), ComparisonSettings()) == ["Nothing here can be compared with decay-all."]


def test_networks_that_collapsed_are_left_out_of_the_answer_and_counted() -> None:
    fine = pairs([0.05, 0.051, 0.049, 0.05], weight_decay=0.01)
    both = [
        made(0.1 + 0.001 * s * (1 + k), name, s, weight_decay=1.0)
        for k, name in enumerate(("decay-all", "exclude-alpha"))
        for s in range(4)
    ]
    first, *_ = headline(summary_of([*fine, *both]), ComparisonSettings())
    assert "λ 0.01 (+5.00" in first
    assert "λ 1" not in first
    assert first.endswith("Left out: 1 in which both collapsed.")
