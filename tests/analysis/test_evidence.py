"""Verdicts, fair tuning and precision on demand, on made records."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit

from decaybench.analysis.cells import cells
from decaybench.analysis.statistics import crossed
from decaybench.analysis.stopping import FIRST_SEEDS, next_runs
from decaybench.analysis.tuning import tuned
from decaybench.bench.verdicts import false_alarms
from decaybench.registry import STRATEGIES as REGISTERED
from decaybench.registry.metrics import TESTED
from decaybench.report.titles import by_method, titled
from decaybench.report.verdicts import tuned_tables, verdicts
from decaybench.results.record import LARGEST_LOSS, Record
from decaybench.study.config import RunConfig
from made_records import frame_of, made, pairs, summary_of, with_outcomes

STRATEGIES = [name for name in REGISTERED if name not in ("decay-all", "no-decay")]


def row_of(records: list[Record], **question: Any) -> dict[str, Any]:
    rows = summary_of(records, **question).rows
    return next(row for row in rows if row["strategy"] == "exclude-alpha")


ACCURACY = TESTED[0]
NOISE = [0.001, -0.001, 0.002, -0.002, 0.0005, -0.0005, 0.001, -0.001]


def test_verdicts_say_what_the_seeds_allow() -> None:
    better = row_of(pairs([0.05 + e for e in NOISE]))
    assert better["test_accuracy_verdict"] == "better"
    assert better["test_accuracy_improvement"] == 1
    assert better["test_accuracy_speaks_about"] == "these test examples"
    assert row_of(pairs([-0.05 + e for e in NOISE]))["test_accuracy_verdict"] == "worse"
    assert row_of(pairs(NOISE))["test_accuracy_verdict"] == "the same within ±0.5 points"
    open_ = row_of(pairs(NOISE), metrics=(replace(ACCURACY, margin=0.0005), TESTED[1]))
    assert open_["test_accuracy_verdict"] == "cannot tell"
    assert 0 < open_["test_accuracy_detectable"] < 0.01
    assert (
        row_of(pairs([20 * e for e in NOISE]), metrics=(replace(ACCURACY, margin=0.01), TESTED[1]))[
            "test_accuracy_verdict"
        ]
        == "cannot tell"
    )
    assert row_of(pairs([0.0] * 8))["test_accuracy_verdict"] == "never differed"
    assert row_of(pairs([0.1]))["test_accuracy_verdict"] is None


def test_the_methods_of_one_question_are_one_family() -> None:
    differences = [0.014, 0.006, 0.012, 0.002, 0.011, 0.008]
    assert row_of(pairs(differences))["test_accuracy_verdict"] == "better"
    rng = np.random.default_rng(0)
    base = [0.8 + 0.013 * (s % 3) for s in range(6)]
    others = [
        made(b + rng.normal(0, 0.01), name, s, loss=0.5 + rng.normal(0, 0.01))
        for name in ("alpha-only", "decay-to-init", "exclude-1d", "exclude-bias", "proximal-l1")
        for s, b in enumerate(base)
    ]
    assert row_of(pairs(differences) + others)["test_accuracy_verdict"] == "cannot tell"
    named = row_of(pairs(differences) + others, primary="exclude-alpha")
    assert named["test_accuracy_verdict"] == "better"  # it was asked for before
    elsewhere = [r for k in range(30) for r in pairs(list(rng.normal(0, 0.01, 6)), batch_size=8 + k)]
    rows = summary_of(pairs(differences) + elsewhere).rows
    mine = next(r for r in rows if r["strategy"] == "exclude-alpha" and r.get("batch_size") == 64)
    assert mine["test_accuracy_verdict"] == "better"  # other questions do not count


def test_strategies_that_are_one_method_are_one_comparison() -> None:
    differences = [0.012, 0.002, 0.01, -0.002, 0.009, 0.004]
    alone = row_of(pairs(differences))
    twins = [
        replace(record, run_id=config.run_id, config=config.model_dump())
        for name in ("loss-penalty", "two-optimizers")
        for record in pairs(differences)[:6]
        for config in [RunConfig.model_validate(made(0.5, name, record.seed).config)]
    ]
    rows = {row["strategy"]: row for row in summary_of(pairs(differences) + twins).rows}
    for name in ("exclude-alpha", "loss-penalty", "two-optimizers"):
        assert rows[name]["method"] == "exclude-alpha"
        assert rows[name]["test_accuracy_p_holm"] == pytest.approx(alone["test_accuracy_p_holm"])
    assert rows["decay-all"]["method"] == "decay-all"


def test_pairing_is_measured() -> None:
    steady = row_of(pairs([0.001, -0.001, 0.0015, -0.0012, 0.0003]))
    assert steady["test_accuracy_pairing"] > 0.9


def sentences(records: list[Record], **settings: Any) -> list[str]:
    (question,) = titled(summary_of(records, **settings))
    return verdicts(question.members, TESTED, "decay-all")


def test_verdicts_in_words() -> None:
    first, *rest = sentences(pairs([0.05, 0.051, 0.049, 0.052, 0.048]))
    assert first.startswith("Better than decay-all in accuracy; never differed in loss: exclude-alpha (+5.00 points")
    assert first.endswith(", p < 0.001; loss +0.0%).")
    assert any("tends to be found too large" in sentence for sentence in rest)
    assert any("says nothing about new ones" in sentence for sentence in rest)
    first, *_ = sentences(pairs([0.01, -0.01, 0.012]))
    assert first.startswith("No verdict on accuracy; never differed in loss: exclude-alpha (+0.40 points where ")
    assert "would have shown" in first


def test_accuracy_and_loss_speak_together() -> None:
    def said(accuracies: list[float], losses: list[float]) -> str:
        n = len(accuracies)
        ours = [
            made(0.8 + a, "exclude-alpha", s, loss=0.5 + x)
            for s, (a, x) in enumerate(zip(accuracies, losses, strict=True))
        ]
        return sentences(ours + [made(0.8, "decay-all", s, loss=0.5) for s in range(n)])[0]

    small = [0.001 * e for e in (1, -1, 2, -2, 1, -1, 1, -1)]
    wide = [30 * e for e in small]
    assert said(wide, [-0.1 + e for e in small]).startswith("No verdict on accuracy; better in loss: exclude-alpha")
    assert "loss −19.9" in said(wide, [-0.1 + e for e in small]) or "loss −20" in said(wide, [-0.1 + e for e in small])
    up, down = [0.05 + e for e in small], [-0.05 + e for e in small]
    assert said(up, up).startswith("Better than decay-all in accuracy; worse in loss")
    assert said(up, down).startswith("Better than decay-all in accuracy and loss")
    assert said(down, up).startswith("Worse than decay-all in accuracy and loss")
    assert said([0.0] * 8, [0.0] * 8).startswith("Never differed from decay-all in accuracy and loss in any seed")
    assert said(small, small).startswith(
        "The same as decay-all in accuracy within ±0.5 points; the same in loss within ±2%"
    )


def test_contrasts_that_were_named_are_corrected_for_each_other_only() -> None:
    differences = [0.012, 0.002, 0.01, -0.002, 0.009, 0.004]
    two = pairs(differences) + pairs(differences, weight_decay=0.3)
    by_decay = {
        (name, row["weight_decay"]): row["test_accuracy_p_holm"]
        for name in ("exclude-alpha", "exclude-alpha:loss")
        for row in summary_of(two, primary=name).rows
        if row["strategy"] == "exclude-alpha"
    }
    (alone,) = [
        r["test_accuracy_p_holm"]
        for r in summary_of(pairs(differences), primary="exclude-alpha").rows
        if r["test_accuracy_p_holm"]
    ]
    assert by_decay["exclude-alpha", 0.3] == pytest.approx(2 * alone)
    twin = [
        replace(record, run_id=config.run_id, config=config.model_dump())
        for record in pairs(differences)[:6]
        for config in [RunConfig.model_validate(made(0.5, "two-optimizers", record.seed).config)]
    ]
    named = row_of(pairs(differences) + twin, primary="two-optimizers")  # the same method by another name
    assert named["test_accuracy_p_holm"] == pytest.approx(alone)


def test_a_name_without_options_is_the_strategy_that_has_none() -> None:
    differences = [0.012, 0.002, 0.01, -0.002, 0.009, 0.004]
    base = [0.8 + 0.013 * (s % 3) for s in range(6)]
    layers = [made(b + 0.003 * s, f"exclude-alpha,layer={n}", s) for n in (0, 1) for s, b in enumerate(base)]
    alone = row_of(pairs(differences), primary="exclude-alpha")["test_accuracy_p_holm"]
    assert row_of(pairs(differences) + layers, primary="exclude-alpha")["test_accuracy_p_holm"] == pytest.approx(alone)
    decay_all = pairs(differences)[6:]
    one, two = (
        {r["strategy"]: r["test_accuracy_p_holm"] for r in summary_of(records, primary="exclude-alpha").rows}
        for records in (layers[:6] + decay_all, layers + decay_all)
    )  # there is no other, so both are what was asked for
    assert two["exclude-alpha,layer=0"] == pytest.approx(2 * one["exclude-alpha,layer=0"])
    against = summary_of(pairs(differences) + layers, baseline="exclude-alpha")
    assert [r["test_accuracy_difference"] for r in against.rows if r["strategy"] == "decay-all"] == [
        pytest.approx(-np.mean(differences))
    ]


def test_what_never_differed_counts_as_a_comparison() -> None:
    """So that the number of comparisons does not depend on what was found: loss is the same everywhere here."""
    differences = [0.012, 0.002, 0.01, -0.002, 0.009, 0.004]
    assert row_of(pairs(differences))["test_accuracy_p_holm"] == pytest.approx(
        2 * row_of(pairs(differences), primary="exclude-alpha")["test_accuracy_p_holm"]
    )


def test_a_method_whose_runs_all_diverged_is_left_out_of_tuning() -> None:
    records = [made(0.1, "proximal-l1", s, weight_decay=d, diverged=1) for s in range(3) for d in (0.1, 0.2)]
    records += [made(0.8, "decay-all", s, weight_decay=d) for s in range(3) for d in (0.1, 0.2)]
    (rows,) = tuned(cells(frame_of(records)), ACCURACY, "decay-all")
    assert [row["strategy"] for row in rows] == ["decay-all"]
    (rows,) = tuned(cells(frame_of(records)), ACCURACY, "proximal-l1")
    assert rows[0]["difference"] is None


def test_a_best_beyond_which_nothing_was_tried_is_marked() -> None:
    def best_at(rate: float, decay: float, diverged: float | None = None) -> tuple[bool, bool]:
        records = [
            made(
                *(0.8 - 0.3 * abs(lr - rate) - 0.2 * abs(d - decay), "decay-all", s),
                lr=lr,
                weight_decay=d,
                diverged=1 if lr == diverged else None,
            )
            for lr in (0.1, 0.2, 0.3)
            for d in (0.0, 0.1, 0.2)
            for s in range(3)
        ]
        ((row,),) = tuned(cells(frame_of(records)), ACCURACY, "decay-all")
        assert (row["lr"], row["weight_decay"]) == (rate, decay)
        return row["lr_on_edge"], row["weight_decay_on_edge"]

    assert best_at(0.2, 0.1) == (False, False)
    assert best_at(0.1, 0.1) == (True, False)
    assert best_at(0.3, 0.2) == (True, True)
    assert best_at(0.2, 0.0) == (False, False)  # less than no decay there is not
    assert best_at(0.2, 0.1, diverged=0.3) == (False, False)  # what diverged was tried


def test_a_baseline_may_be_named_by_any_of_its_names() -> None:
    records = [
        scored(name, decay, seed, 0.7, 0.6 + 0.01 * seed + 0.1 * (name == "decay-all"))
        for name in ("decay-all", "exclude-alpha", "two-optimizers")
        for decay in (0.1, 0.2)
        for seed in range(4)
    ]
    (rows,) = tuned(cells(frame_of(records)), ACCURACY, "two-optimizers")
    assert {row["strategy"]: row["difference"] for row in rows}["decay-all"] == pytest.approx(0.1)


@st.composite
def tables(draw: Any) -> list[Record]:
    """Records with outcomes of two to six seeds on a few images, for some strategies and decays."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n, m = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 30]))
    easy = rng.normal(0.5, 1, m)
    records = []
    for decay in draw(st.sampled_from([(0.1,), (0.1, 0.2)])):
        for strategy in ("decay-all", *draw(st.sets(st.sampled_from(STRATEGIES), max_size=4))):
            effect = draw(st.sampled_from([0.0, 0.3, -2.0]))
            for seed in range(n):
                score = easy + effect + rng.normal(0, draw(st.sampled_from([0.0, 0.5])), m)
                losses = np.clip(np.exp(-score), 0, 65504)
                records.append(with_outcomes(score > 0, losses, strategy, seed, weight_decay=decay))
    return records


@settings(max_examples=60, deadline=None)
@given(tables(), st.booleans(), st.sampled_from([None, "exclude-alpha", "alpha-only:loss"]))
def test_nothing_in_a_row_contradicts_anything_else_in_it(
    records: list[Record], fixed: bool, primary: str | None
) -> None:
    summary = summary_of(records, fixed_test_set=fixed, primary=primary)
    for row in summary.rows:
        assert all(v is None or v == v for v in row.values())  # no NaN
        for name, margin in (("test_accuracy", 0.005), ("test_loss", 0.02)):
            verdict, low, high = (row[f"{name}_{key}"] for key in ("verdict", "difference_low", "difference_high"))
            p, seen, value = (row[f"{name}_{key}"] for key in ("p_holm", "detectable", "difference"))
            clear = low is not None and (low > 0 or high < 0)
            same = verdict is not None and verdict.startswith("the same")
            assert (verdict in ("better", "worse")) == (clear and not same)
            if p is not None:
                assert (p < 0.05) == clear
            if verdict == "cannot tell" and seen is not None:
                assert seen > abs(value)
            if verdict and verdict.startswith("the same"):
                base = 1.0 if name == "test_accuracy" else row["test_loss"] - value
                assert -margin * base < low <= high < margin * base
    for question in titled(summary):
        text = " ".join(verdicts(question.members, TESTED, "decay-all"))
        assert "nan" not in text.lower()
        for names, (row, _) in by_method(question.members):  # a method is called by its first name
            if row["test_accuracy_verdict"] or row["test_loss_verdict"]:
                assert names[0] in text


def scored(strategy: str, decay: float, seed: int, validation: float, test: float) -> Record:
    record = made(test, strategy, seed, weight_decay=decay)
    record.history["validation_accuracy"] = [validation]
    return record


def test_the_best_is_chosen_on_validation_alone() -> None:
    records = [
        scored("decay-all", d, s, v + 0.001 * s, t) for s in range(4) for d, v, t in ((0.1, 0.7, 0.9), (0.2, 0.8, 0.6))
    ]
    records += [scored("exclude-alpha", d, s, 0.7, 0.65 + 0.01 * s) for s in range(4) for d in (0.1,)]
    (rows,) = tuned(cells(frame_of(records)), ACCURACY, "decay-all")
    rows = {row["strategy"]: row for row in rows}
    assert rows["decay-all"]["weight_decay"] == 0.2  # whatever the test part says
    assert rows["decay-all"]["test"] == pytest.approx(0.6)
    assert rows["decay-all"]["chosen_again"] == 1
    assert rows["exclude-alpha"]["difference"] is None  # it had one decay, the other two
    assert tuned(cells(frame_of(records[:1])), ACCURACY, "decay-all") == []


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
        ((row,),) = tuned(cells(frame_of(records)), ACCURACY, "decay-all")
        hits += row["test_low"] <= 0.7 <= row["test_high"]
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
        batch = next_runs(runs, frame_of(study(spread, runs, done)), 1.0, ACCURACY, "decay-all")
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
        assert (row["test_accuracy_difference_high"] - row["test_accuracy_difference_low"]) / 2 <= 0.01 or count[
            "alpha-only"
        ] == 40


def outcomes_of_pairs(seeds: int, images: int, image_effect: float, seed: int = 0, **fields: Any) -> list[Record]:
    """Two strategies that differ on some images in every seed, so that images are what an interval needs."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.random(images) < image_effect, rng.random(images) < image_effect
    records = []
    for s in range(seeds):
        base = np.ones(images, bool)
        base[: images // 10] = rng.random(images // 10) < 0.5
        records.append(with_outcomes(base & ~ours, np.where(base & ~ours, 0.1, 2.0), "exclude-alpha", s, **fields))
        records.append(with_outcomes(base & ~theirs, np.where(base & ~theirs, 0.1, 2.0), "decay-all", s, **fields))
    return records


def test_where_images_and_not_seeds_are_the_limit_it_is_said() -> None:
    def said(records: list[Record], **settings: Any) -> str:
        summary = summary_of(records, **settings)
        return " ".join(verdicts(titled(summary)[0].members, TESTED, "decay-all"))

    limited = outcomes_of_pairs(30, 100, 0.1)
    assert "For exclude-alpha the test examples are the limit: with any number of seeds" in said(limited)
    assert "are the limit" not in said(limited, fixed_test_set=True)
    assert "are the limit" not in said(outcomes_of_pairs(3, 400, 0.0))


def test_a_loss_too_large_to_be_recorded_is_not_put_into_an_interval() -> None:
    records = outcomes_of_pairs(6, 100, 0.05)
    bad = next(i for i, r in enumerate(records) if r.config["strategy"]["name"] == "exclude-alpha")
    old = records[bad].outcomes
    losses = old["test_loss"].astype(np.float64)
    losses[0] = LARGEST_LOSS
    worse = with_outcomes(old["test_accuracy"], losses, "exclude-alpha", 0)
    records[bad] = replace(worse, history={**worse.history, "test_loss": [float(losses.mean()) + 1e6]})
    row = row_of(records)
    assert row["test_loss_difference"] == pytest.approx(
        (1e6 + losses.mean() - old["test_loss"].astype(float).mean()) / 6, rel=0.01
    )
    assert row["test_loss_difference_low"] < row["test_loss_difference"] < row["test_loss_difference_high"]
    assert (row["test_accuracy_speaks_about"], row["test_loss_speaks_about"]) == (
        "new test examples",
        "these test examples",
    )
    said = verdicts(titled(summary_of(records))[0].members, TESTED, "decay-all")
    assert sum("not recorded for each example, or too large to be" in sentence for sentence in said) == 1


def test_tuned_intervals_hold_over_images_too() -> None:
    """With one candidate the bootstrap's error is that of the crossed estimate."""
    records = outcomes_of_pairs(12, 300, 0.1, weight_decay=0.1) + outcomes_of_pairs(12, 300, 0.5, weight_decay=0.2)
    (rows,) = tuned(cells(frame_of(records)), ACCURACY, "decay-all")
    row = next(row for row in rows if row["strategy"] == "exclude-alpha")
    assert row["speaks_about"] == "new test examples"
    tables = [
        np.stack([r.outcomes["test_accuracy"] for r in records if r.config["strategy"]["name"] == name][:12]).astype(
            float
        )
        for name in ("exclude-alpha", "decay-all")
    ]
    expected = crossed(tables[0] - tables[1])
    assert expected is not None
    error = (row["difference_high"] - row["difference_low"]) / 2 / stdtrit(11, 0.975)
    assert error == pytest.approx(expected.error, rel=0.15)


@pytest.mark.slow
def test_real_nulls_rarely_get_a_verdict() -> None:
    """Pairs of trainings that differ in the batches of their last epoch only; 2,000 studies drawn from them."""
    for row in false_alarms(40):
        if row["seeds"] in (3, 5, 8, 20):
            for kind in ("accuracy", "loss", "either"):
                assert row[f"false alarms, {kind}"] <= 0.05, row


def test_what_rests_on_fewer_seeds_says_so() -> None:
    records = pairs([0.05 + e for e in NOISE] + [0.05] * 4)
    lost = [r for r in records if r.config["strategy"]["name"] == "decay-all" and r.seed >= 8]
    records = [replace(r, diverged=1) if r in lost else r for r in records]
    row = row_of(records)
    assert (row["pairs"], row["seeds"]) == (8, 12)
    said = " ".join(verdicts(titled(summary_of(records))[0].members, TESTED, "decay-all"))
    assert "over 8 of 12 seeds" in said
    assert "With fewer than 10 seeds" in said
    everything = [replace(r, diverged=1) if r.config["strategy"]["name"] == "exclude-alpha" else r for r in records]
    said = " ".join(verdicts(titled(summary_of(everything))[0].members, TESTED, "decay-all"))
    assert "Diverged in every seed, so that nothing can be compared: exclude-alpha at 0.002." in said


def test_a_change_of_loss_is_a_share_of_the_baselines_on_the_same_seeds() -> None:
    records = [made(0.8, "decay-all", s, loss=1.0 + s) for s in range(4)]
    records += [made(0.8, "exclude-alpha", s, loss=2.0 + s + 0.01 * s) for s in range(8)]
    row = row_of(records)
    assert row["test_loss_baseline"] == pytest.approx(2.5)
    said = " ".join(verdicts(titled(summary_of(records))[0].members, TESTED, "decay-all"))
    assert f"loss +{100 * row['test_loss_difference'] / 2.5:.1f}%" in said


def test_a_rate_that_diverged_is_no_candidate_and_the_search_stays_equal() -> None:
    def cell(strategy: str, decay: float, value: float, diverged: int = 0) -> list[Record]:
        found = [scored(strategy, decay, s, value + 0.001 * s, value) for s in range(4)]
        return [replace(r, diverged=1) if r.seed < diverged else r for r in found]

    records = cell("decay-all", 0.1, 0.7) + cell("decay-all", 0.2, 0.9, diverged=2)
    records += cell("exclude-alpha", 0.1, 0.75) + cell("exclude-alpha", 0.2, 0.6)
    (rows,) = tuned(cells(frame_of(records)), ACCURACY, "decay-all")
    by_name = {row["strategy"]: row for row in rows}
    assert by_name["decay-all"]["weight_decay"] == 0.1
    assert (by_name["decay-all"]["candidates"], by_name["decay-all"]["left_out"]) == (2, 1)
    assert by_name["exclude-alpha"]["seeds"] == 4
    assert by_name["exclude-alpha"]["difference"] == pytest.approx(0.05)
    ((title, _, _),) = tuned_tables([rows], ACCURACY, "decay-all")
    assert "best of 2" in title
    assert "what diverged in a seed is no candidate" in title
