"""Verdicts, fair tuning and precision on demand, on made records."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from decaybench.analysis.cells import cells
from decaybench.analysis.stopping import FIRST_SEEDS, next_runs
from decaybench.analysis.tuning import tuned
from decaybench.report.verdicts import verdicts
from decaybench.results.record import Record
from decaybench.study.config import RunConfig
from made_records import frame_of, made, pairs, summary_of


def row_of(records: list[Record], **question: Any) -> dict[str, Any]:
    rows = summary_of(records, **question).rows
    return next(row for row in rows if row["strategy"] == "exclude-alpha")


def test_verdicts_say_what_the_seeds_allow() -> None:
    noise = [0.001, -0.001, 0.002, -0.002, 0.0005, -0.0005, 0.001, -0.001]
    better = row_of(pairs([0.05 + e for e in noise]))
    assert better["verdict"] == "better"
    assert better["improvement"] == 1
    assert row_of(pairs([-0.05 + e for e in noise]))["verdict"] == "worse"
    open_ = row_of(pairs(noise))
    assert open_["verdict"] == "not enough seeds to tell"
    assert 0 < open_["detectable"] < 0.01
    assert row_of(pairs(noise), margin=0.01)["verdict"] == "the same within ±1"
    assert row_of(pairs([20 * e for e in noise]), margin=0.01)["verdict"] == "not enough seeds to tell"
    assert row_of(pairs([0.0] * 8))["verdict"] == "the same in every seed"
    assert row_of(pairs([0.1]))["verdict"] is None


def test_many_comparisons_need_more_evidence() -> None:
    differences = [0.012, 0.002, 0.01, -0.002, 0.009, 0.004]
    alone = pairs(differences)
    assert row_of(alone)["verdict"] == "better"
    rng = np.random.default_rng(0)
    others = [r for k in range(30) for r in pairs(list(rng.normal(0, 0.01, 6)), batch_size=8 + k)]
    together = summary_of(alone + others).rows
    mine = next(r for r in together if r["strategy"] == "exclude-alpha" and r.get("batch_size") == 64)
    assert mine["verdict"] == "not enough seeds to tell"


def test_pairing_is_measured() -> None:
    steady = row_of(pairs([0.001, -0.001, 0.0015, -0.0012, 0.0003]))
    assert steady["pairing"] > 0.9


def test_verdicts_in_words() -> None:
    rows = summary_of(pairs([0.05, 0.051, 0.049, 0.052, 0.048])).rows
    (sentence,) = verdicts(rows, "decay-all")
    assert sentence.startswith("Better than decay-all: exclude-alpha (+5.00, p < 0.001)")
    (sentence,) = verdicts(summary_of(pairs([0.01, -0.01, 0.012])).rows, "decay-all")
    assert sentence.startswith("Not enough seeds to tell: exclude-alpha (")
    assert sentence.endswith(" would have shown).")


def scored(strategy: str, decay: float, seed: int, validation: float, test: float) -> Record:
    record = made(test, strategy, seed, weight_decay=decay)
    record.history["validation_accuracy"] = [validation]
    return record


def test_the_best_is_chosen_on_validation_alone() -> None:
    records = [
        scored("decay-all", d, s, v + 0.001 * s, t) for s in range(4) for d, v, t in ((0.1, 0.7, 0.9), (0.2, 0.8, 0.6))
    ]
    records += [scored("exclude-alpha", d, s, 0.7, 0.65 + 0.01 * s) for s in range(4) for d in (0.1,)]
    rows = {row["strategy"]: row for row in tuned(cells(frame_of(records)), "decay-all")}
    assert rows["decay-all"]["weight_decay"] == 0.2  # whatever the test part says
    assert rows["decay-all"]["test_accuracy"] == pytest.approx(0.6)
    assert rows["decay-all"]["chosen_again"] == 1
    assert rows["exclude-alpha"]["difference"] == pytest.approx(0.065)
    assert tuned(cells(frame_of(records[:1])), "decay-all") == []


@pytest.mark.slow
def test_intervals_of_tuned_strategies_count_the_choice() -> None:
    """Five decays that are all the same: the test accuracy of whichever is chosen is still 0.7."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(60):
        records = []
        for seed in range(10):
            for decay in (0.1, 0.2, 0.3, 0.4, 0.5):
                both = rng.normal(0.7, 0.02, 2)
                records.append(scored("decay-all", decay, seed, *np.clip(both, 0, 1)))
        (row,) = tuned(cells(frame_of(records)), "decay-all")
        hits += row["test_accuracy_low"] <= 0.7 <= row["test_accuracy_high"]
    assert hits / 60 >= 0.92


def study(spread: dict[str, float], runs: list[RunConfig], done: set[str]) -> list[Record]:
    """Records of the finished runs: accuracies that vary by so much around 0.8."""
    records = []
    for run in runs:
        if run.run_id in done:
            noise = np.random.default_rng(run.seed).normal(0, spread[run.strategy.name])
            record = made(0.8 + noise, run.strategy.name, run.seed)
            records.append(replace(record, run_id=run.run_id, config=run.model_dump()))
    return records


def test_seeds_are_added_where_they_are_needed_and_no_more() -> None:
    names = ["decay-all", "exclude-alpha", "alpha-only"]
    spread = {"decay-all": 0.0, "exclude-alpha": 0.001, "alpha-only": 0.02}
    template = {name: RunConfig.model_validate(made(0.5, name).config) for name in names}
    runs = [template[name].model_copy(update={"seed": s}) for s in range(40) for name in names]
    done: set[str] = set()
    for _ in range(50):
        batch = next_runs(runs, frame_of(study(spread, runs, done)), 0.01, "decay-all")
        if not done:
            assert {run.seed for run in batch} == set(range(FIRST_SEEDS))
        if not batch:
            break
        assert not done & {run.run_id for run in batch}
        done |= {run.run_id for run in batch}
    count = {name: sum(r.run_id in done for r in runs if r.strategy.name == name) for name in names}
    assert count["exclude-alpha"] < 12 < count["alpha-only"] == count["decay-all"]
    records = study(spread, runs, done)
    rows = summary_of(records, anytime=True).rows
    for row in rows[1:]:
        assert (row["difference_high"] - row["difference_low"]) / 2 <= 0.01 or count["alpha-only"] == 40
