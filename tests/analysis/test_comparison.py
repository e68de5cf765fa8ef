"""Cells, pairs and intervals, against scipy and by simulation; and how they are written."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from decaybench.analysis.comparison import ComparisonSettings, columns
from decaybench.analysis.frame import alpha_columns
from decaybench.analysis.statistics import over_seeds
from decaybench.registry.metrics import TESTED
from decaybench.report.numbers import format_interval, format_number, format_percent, histogram
from decaybench.report.tables import to_csv, to_json, to_markdown
from decaybench.report.terminal import print_layers, print_summary
from decaybench.results.record import Record
from decaybench.study.config import TRAINING_VERSION
from made_records import made, summary_of

_OF_METRIC = [
    *("", "_low", "_high", "_speaks_about", "_baseline", "_difference", "_difference_low", "_difference_high"),
    *("_seeds_low", "_seeds_high", "_p_holm", "_detectable", "_verdict", "_improvement", "_pairing"),
]
KEYS = [
    *("dataset", "network", "activation", "strategy", "optimizer", "lr", "weight_decay", "epochs", "method", "seeds"),
    *("diverged", "pairs"),
    *(f"{metric}{what}" for metric in ("test_accuracy", "test_loss") for what in _OF_METRIC),
    *("alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95", "alpha_near_zero"),
]


def by_strategy(records: list[Record], **kwargs) -> dict[str, dict]:
    return {row["strategy"]: row for row in summary_of(records, **kwargs).rows}


def test_intervals_against_scipy() -> None:
    values = [0.91, 0.93, 0.9, 0.96, 0.92]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    estimate = over_seeds(values)
    assert (estimate.value, *estimate.interval()) == pytest.approx((np.mean(values), *interval), rel=1e-12)
    assert over_seeds([0.5]) is None
    assert over_seeds([0.5, 0.5, 0.5]) is None  # a tie is no certainty
    assert over_seeds([]) is None


def test_the_interval_of_an_accuracy_ends_at_one() -> None:
    (row,) = summary_of([made(0.99), made(1.0, seed=1)]).rows
    assert row["test_accuracy_high"] == 1.0


def test_differences_are_paired_by_seed() -> None:
    ours, theirs = [0.90, 0.80, 0.70], [0.88, 0.77, 0.69]
    records = [made(a, "exclude-alpha", s) for s, a in enumerate(ours)]
    records += [made(a, "decay-all", s) for s, a in enumerate(theirs)]
    row = by_strategy(records[::-1])["exclude-alpha"]  # in whatever order the files come
    wanted = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = (row["test_accuracy_difference"], row["test_accuracy_seeds_low"], row["test_accuracy_seeds_high"])
    assert found == pytest.approx((0.02, *wanted))
    assert row["test_accuracy"] == pytest.approx(0.8)
    assert by_strategy(records)["decay-all"]["test_accuracy_difference"] is None


def test_seeds_that_only_one_side_has_are_not_paired() -> None:
    records = [made(0.9, "exclude-alpha", s) for s in range(3)] + [made(0.8, "decay-all", s) for s in (1, 2, 3)]
    records[1] = made(0.7, "exclude-alpha", 1)
    assert by_strategy(records)["exclude-alpha"]["test_accuracy_difference"] == pytest.approx(0.0)


@pytest.mark.parametrize("key", ["data", "initial", "batches"])
def test_runs_whose_fingerprints_differ_are_not_paired(key: str) -> None:
    prints = {"data": "d", "initial": "i0", "batches": "b0"}
    records = [made(0.9, "exclude-alpha", 0, fingerprints={**prints, key: "other"}), made(0.8, "decay-all", 0)]
    summary = summary_of(records)
    assert all(row["test_accuracy_difference"] is None for row in summary.rows)
    said = "stands for 2 different data sets" if key == "data" else "seed 0 is not paired"
    assert any(said in note for note in summary.notes)


def test_versions_of_somebodys_own_code_are_different_cells() -> None:
    records = [made(0.9), made(0.1, seed=1)]
    for record, source in zip(records, ("aaaaaaaaaaaa", "bbbbbbbbbbbb"), strict=True):
        record.config["activation"] = {"name": "mine.py:act", "options": {}, "source": source}
    rows = summary_of(records).rows
    assert [row["activation"] for row in rows] == ["mine.py:act@aaaaaa", "mine.py:act@bbbbbb"]
    records = [made(0.9), made(0.1, seed=1)]
    records[1].config["training_version"] = 0
    assert [row["training_version"] for row in summary_of(records).rows] == [0, TRAINING_VERSION]


def test_fewer_pairs_than_seeds_are_said() -> None:
    records = [made(0.9 + 0.01 * s, "exclude-alpha", s) for s in range(3)] + [made(0.8, "decay-all", 0)]
    assert "the difference is over 1 of 3 seeds" in " ".join(summary_of(records).notes)
    assert "no run has the strategy decay-all" in " ".join(summary_of(records[:3]).notes)


def test_diverged_runs_are_counted_named_and_left_out() -> None:
    records = [made(0.9, "decay-all", 0), made(0.1, "decay-all", 1, diverged=1)]
    summary = summary_of(records)
    (row,) = summary.rows
    assert (row["seeds"], row["diverged"], row["test_accuracy"]) == (2, 1, 0.9)
    assert summary.notes == ["prelu with decay-all at 0.002: 1 of 2 runs diverged (epoch 1)."]
    (row,) = summary_of([made(0.1, diverged=1)]).rows
    assert row["test_accuracy"] is None
    assert row["alpha_mean"] is None


def test_only_cells_of_the_same_question_are_compared() -> None:
    records = [
        made(0.9, "exclude-alpha"),
        made(0.8, "decay-all", activation="kaf"),
        made(0.7, "decay-all", batch_size=32),
        made(0.6, "decay-all", weight_decay=0.3),
    ]
    summary = summary_of(records)
    assert all(row["test_accuracy_difference"] is None for row in summary.rows)
    assert {row["batch_size"] for row in summary.rows} == {32, 64}  # shown, since it differs


def test_the_control_fits_one_decay_and_no_one_of_several() -> None:
    control = made(0.9, "no-decay", weight_decay=0.0)
    assert by_strategy([control, made(0.8)])["no-decay"]["test_accuracy_difference"] == pytest.approx(0.1)
    assert (
        by_strategy([control, made(0.8), made(0.7, weight_decay=0.3)])["no-decay"]["test_accuracy_difference"] is None
    )
    row = by_strategy([control, made(0.8)], baseline="no-decay")["decay-all"]
    assert row["test_accuracy_difference"] == pytest.approx(-0.1)


def test_activation_columns_against_numpy() -> None:
    alphas = np.array([0.25, 0.005, -0.5, 0.3, -0.01], np.float32)
    columns = alpha_columns(alphas)
    assert columns["alpha_near_zero"] == pytest.approx(0.4)
    assert columns["alpha_mean"] == pytest.approx(alphas.astype(float).mean())
    assert columns["alpha_q05"] == pytest.approx(np.percentile(alphas, 5))
    assert columns["alpha_q95"] == pytest.approx(np.percentile(alphas, 95))
    assert set(alpha_columns(np.empty(0)).values()) == {None}


def everything() -> list[Record]:
    records = [made(0.8 + 0.01 * s, st, s) for s in range(3) for st in ("decay-all", "exclude-alpha")]
    return [*records, made(0.5, "decay-all", 0, activation="relu"), made(0.5, "exclude-1d", 0, diverged=1)]


def test_json_has_the_promised_keys_in_order_and_fractions() -> None:
    rows = json.loads(to_json(summary_of(everything())))
    assert [list(row) for row in rows] == [KEYS] * 4
    assert list(columns(TESTED)) == KEYS
    assert rows[0]["test_accuracy"] == pytest.approx(0.81)
    layers = json.loads(to_json(summary_of(everything()), layers=True))[0]["layers"]
    assert layers[0]["layer"] == "2"
    assert layers[0]["distance_from_zero"] == 1.5


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(summary_of(everything())))))
    assert list(rows[0]) == KEYS
    assert float(rows[0]["test_accuracy"]) == pytest.approx(0.81)
    layers = list(csv.DictReader(io.StringIO(to_csv(summary_of(everything()), layers=True))))
    assert [row["layer"] for row in layers] == ["2", "2"]


def test_markdown_is_one_table_and_escapes() -> None:
    lines = to_markdown(summary_of(everything())).splitlines()
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1
    assert "| prelu | decay-all |" in lines[2]
    assert lines[-1].startswith("- prelu with exclude-1d at 0.002: 1 of 1 runs diverged")
    records = [made(0.5)]
    records[0].config["activation"] = {"name": "a|b<script>", "options": {}, "source": "x"}
    assert "a\\|b" in to_markdown(summary_of(records))


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_table_shows_every_cell(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width)
    print_summary(summary_of(everything()), console, ComparisonSettings())
    print_layers(summary_of(everything()), console)
    text = out.getvalue()
    for expected in (
        "decay-all",
        "exclude-alpha",
        "81.00",
        "+0.00",
        "1 (1 diverged)",
        "· relu ·",
        "prelu with exclude-1d",
    ):
        assert expected in text
    assert "…" not in text
    assert "█" in text


def test_a_usual_table_fits_an_old_terminal() -> None:
    strategies = ("no-decay", "decay-all", "exclude-alpha", "two-optimizers")
    records = [made(0.9 + 0.01 * s + 0.001 * i, st, s) for s in range(3) for i, st in enumerate(strategies)]
    for r in records:
        r.config["weight_decay"] *= r.config["strategy"]["name"] != "no-decay"
    out = io.StringIO()
    print_summary(summary_of(records), Console(file=out, width=80), ComparisonSettings())
    lines = [line for line in out.getvalue().splitlines() if "(" not in line]
    table = [line for line in lines if line.startswith((*strategies, "= two"))]
    assert len(table) == 4
    assert max(len(line) for line in table) <= 80


def test_markup_in_names_is_text() -> None:
    records = [made(0.5)]
    records[0].config["activation"] = {"name": "[red]x[/red]:y", "options": {}, "source": "x"}
    out = io.StringIO()
    print_summary(summary_of(records), Console(file=out, width=160), ComparisonSettings())
    assert "[red]x[/red]:y" in out.getvalue()


def test_numbers_for_people() -> None:
    assert format_percent(0.12345) == "12.35"
    assert format_percent(-0.001, signed=True) == "−0.10"
    assert format_interval(TESTED[0], 0.91, 0.925) == "[91.00, 92.50]"
    assert format_interval(TESTED[0], None, None) == ""
    assert [format_number(v) for v in (None, 0.05, 1e-5, 0.123456, -12.3456, 31, 0.0, "x")] == [
        "–",
        "0.05",
        "1e−05",
        "0.123",
        "−12.346",
        "31",
        "0",
        "x",
    ]
    assert histogram([0, 1, 4, 8]) == " ▁▄█"
    assert histogram([]) == histogram([0, 0]) == ""
