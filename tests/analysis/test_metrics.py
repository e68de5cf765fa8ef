"""Any metric is compared as accuracy and loss are: its direction, its unit, what counts as the same."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decaybench.analysis.cells import cells
from decaybench.analysis.comparison import ComparisonSettings, Summary, summarize
from decaybench.analysis.frame import recorded_columns, recorded_metrics
from decaybench.analysis.stopping import next_runs
from decaybench.analysis.tuning import tuned
from decaybench.errors import UsageError
from decaybench.registry.metrics import KINDS, metric, named, reported
from decaybench.registry.spec import Spec
from decaybench.report.titles import titled
from decaybench.report.verdicts import verdicts
from decaybench.results.record import Record
from decaybench.study.config import ScriptConfig
from made_records import frame_of

NOISE = [0.01, -0.01, 0.02, -0.02, 0.005, -0.005]


def scored(strategy: str, seed: int, decay: float = 0.1, **values: Any) -> Record:
    """A record of a script, with the last values of some metrics."""
    config = ScriptConfig(
        script="train.py",
        source="0" * 12,
        strategy=Spec(name=strategy),
        weight_decay=decay,
        seed=seed,
        args=values.pop("args", {}),
    )
    return Record(
        config.run_id,
        config.model_dump(),
        {"initial": f"i{seed}"},
        None,
        {name: [value] for name, value in values.items()},
        metrics={name: metric(name, "lower").direction for name in values},
    )


def arms(name: str, base: float, change: float, noise: float = 1.0) -> list[Record]:
    records = []
    for seed, e in enumerate(NOISE):
        records.append(scored("decay-all", seed, **{name: base + 0.1 * (seed % 2)}))
        records.append(scored("exclude-alpha", seed, **{name: base + 0.1 * (seed % 2) + change + noise * e}))
    return records


def summary_of(records: list[Record], *names: str) -> Summary:
    return summarize(frame_of(records), ComparisonSettings(metrics=tuple(map(metric, names)) or None))


def row_of(records: list[Record], *names: str) -> dict[str, Any]:
    return next(row for row in summary_of(records, *names).rows if row["strategy"] == "exclude-alpha")


@pytest.mark.parametrize(
    ("name", "change", "verdict"),
    [
        ("validation_loss", -0.5, "better"),
        ("perplexity", 0.5, "worse"),
        ("score:max", 0.5, "better"),
        ("score:min", 0.5, "worse"),
        ("val/mse", 0.0, "the same within ±2%"),
        ("r2", -0.5, "worse"),
        ("reward:max", 0.0, "cannot tell"),  # nobody said what counts as the same
    ],
)
def test_a_verdict_follows_the_direction_of_its_metric(name: str, change: float, verdict: str) -> None:
    plain = name.partition(":")[0]
    base = -3.0 if name in ("r2", "reward:max") else 3.0
    row = row_of(arms(plain, base, change), name)
    assert row[f"{plain}_verdict"] == verdict
    assert row[f"{plain}_difference"] == pytest.approx(change + np.mean(NOISE))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=3, max_size=8, unique=True),
    st.floats(-5, 5),
    st.sampled_from([0.01, 0.3, 3.0]),
)
def test_less_of_a_metric_is_more_of_its_negative(values: list[float], shift: float, noise: float) -> None:
    rng = np.random.default_rng(len(values))
    pairs = [(v, v + shift + noise * float(rng.normal())) for v in values]

    def row(sign: float, way: str) -> dict[str, Any]:
        records = [scored("decay-all", s, score=sign * a) for s, (a, _) in enumerate(pairs)]
        records += [scored("exclude-alpha", s, score=sign * b) for s, (_, b) in enumerate(pairs)]
        return row_of(records, f"score:{way}")

    up, down = row(1.0, "max"), row(-1.0, "min")
    assert up["score_verdict"] == down["score_verdict"]
    assert up["score_p_holm"] == pytest.approx(down["score_p_holm"])
    assert up["score_difference_low"] == pytest.approx(-down["score_difference_high"])
    assert up["score_improvement"] == pytest.approx(down["score_improvement"])


def test_losses_below_zero_have_a_margin_and_a_sentence() -> None:
    records = arms("test_nll", -4.0, 0.0)
    row = row_of(records)
    assert row["test_nll_verdict"] == "the same within ±2%"
    said = verdicts(titled(summary_of(records))[0].members, summary_of(records).metrics, "decay-all")
    assert "The same as decay-all in nll within ±2%: exclude-alpha (nll " in said[0]


def test_metrics_are_chosen_from_what_was_recorded() -> None:
    recorded = {"train_loss": "lower", "validation_loss": "lower", "test_loss": "lower", "test_f1": "higher"}
    assert [m.name for m in reported(recorded)] == ["test_f1", "test_loss"]  # type: ignore[arg-type]
    assert [m.name for m in reported({"val_loss": "lower", "train_loss": "lower"})] == ["val_loss"]
    assert [m.name for m in named(["f1"], recorded, [*recorded])] == ["test_f1"]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no run recorded it; recorded are"):
        named(["test_los:min"], recorded, [*recorded])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing says whether less or more"):
        named(["speed"], {}, ["speed"])
    frame = frame_of([scored("decay-all", 0, test_loss=1.0, speed=3.0)])
    assert {"test_loss", "speed"} <= set(recorded_columns(frame))
    assert set(recorded_metrics(frame)) >= {"test_loss"}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_known_by_the_end_of_a_name(name: str) -> None:
    for text in (name, f"test_{name}", f"val/{name}", f"eval-{name}"):
        assert metric(text).direction == KINDS[name].direction
    assert metric(f"test_{name}:min").direction == "lower"  # what is said counts


@pytest.mark.parametrize("text", ["", "a b", "loss:up", "1st", "x" * 200, "loss:"])
def test_what_is_no_metric_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="write a name such as validation_loss"):
        metric(text)


def test_the_best_decay_is_where_the_validation_loss_is_lowest() -> None:
    records = [
        scored("decay-all", s, d, validation_loss=v + 0.01 * s, test_loss=t + 0.01 * s)
        for s in range(4)
        for d, v, t in ((0.1, 1.0, 2.0), (0.2, 0.5, 9.0))
    ]
    ((row,),) = tuned(cells(frame_of(records)), metric("test_loss"), "decay-all")
    assert row["weight_decay"] == 0.2
    assert row["test"] == pytest.approx(9.015)
    assert tuned(cells(frame_of(records)), metric("validation_loss"), "decay-all") == []  # chosen by what is reported


def test_seeds_are_added_until_a_loss_is_known_to_a_share_of_itself() -> None:
    runs, done = [], []
    for seed in range(30):
        for strategy in ("decay-all", "exclude-alpha"):
            loss = 2.0 + (0.02 * (-1) ** seed if strategy == "exclude-alpha" else 0.0)
            record = scored(strategy, seed, test_loss=loss)
            runs.append(ScriptConfig.model_validate(record.config))
            done.append(record)
    by_id = {record.run_id: record for record in done}
    finished: list[Record] = []
    while batch := next_runs(runs, frame_of(finished), 2.0, metric("test_loss"), "decay-all"):
        finished += [by_id[run.run_id] for run in batch]
    half = 0.02 * 2.0
    row = next(
        r
        for r in summarize(frame_of(finished), ComparisonSettings(metrics=(metric("test_loss"),), anytime=True)).rows
        if r["strategy"] == "exclude-alpha"
    )
    assert (row["test_loss_difference_high"] - row["test_loss_difference_low"]) / 2 <= half
    assert row["pairs"] < 30


def test_runs_that_nothing_pairs_are_compared_and_said_to_be_unpaired() -> None:
    records = arms("loss", 3.0, -0.5)
    clean = summary_of(records)
    assert not any("are paired with" in note for note in clean.notes)
    for record in records:
        record.fingerprints.clear()
    bare = summary_of(records)
    assert any("nothing shows that its runs are paired with the baseline's" in note for note in bare.notes)
    assert [r["loss_difference"] for r in bare.rows] == [r["loss_difference"] for r in clean.rows]


def test_a_metric_that_only_some_runs_recorded_is_not_averaged_over_others() -> None:
    records = arms("loss", 3.0, -0.5)
    del records[0].history["loss"]
    records[0].history["other_loss"] = [1.0]
    row = next(r for r in summary_of(records, "loss").rows if r["strategy"] == "decay-all")
    assert row["loss"] is None
    assert row_of(records, "loss")["loss_verdict"] is None


def test_options_of_a_script_are_questions() -> None:
    records = [
        scored(strategy, seed, loss=1.0 + seed * 0.1 - (strategy == "exclude-alpha"), args={"size": size})
        for size in ("s", "m")
        for strategy in ("decay-all", "exclude-alpha")
        for seed in range(3)
    ]
    assert [question.title for question in titled(summary_of(records))] == ["train.py · size=m", "train.py · size=s"]


def test_metrics_and_options_of_one_name_are_told_apart() -> None:
    records = [
        scored(strategy, seed, test_loss=1.0 + 0.1 * seed, loss=50.0 + seed, args={"loss": size})
        for size in ("l1", "l2")
        for strategy in ("decay-all", "exclude-alpha")
        for seed in range(3)
    ]
    summary = summary_of(records, "test_loss", "loss", "loss")
    assert [m.title for m in summary.metrics] == ["test loss", "loss", "loss"]
    summary = summarize(
        frame_of(records), ComparisonSettings(metrics=named(["test_loss", "loss", "loss"], {}, ["test_loss", "loss"]))
    )
    assert [m.title for m in summary.metrics] == ["test loss", "loss"]
    assert [row["loss"] for row in summary.rows] == [51.0] * 4
    assert {row["args.loss"] for row in summary.rows} == {"l1", "l2"}
    assert titled(summary)[0].title == "train.py · args.loss=l1"


def test_options_called_split_and_lr_are_options() -> None:
    records = [
        scored(strategy, seed, d, test_loss=1.0 + seed, validation_loss=1.0, args={"split": "seed", "lr": lr})
        for strategy in ("decay-all", "exclude-alpha")
        for seed in range(3)
        for lr in ("1e-3", "0.01")
        for d in (0.1, 0.2)
    ]
    rows = summary_of(records).rows
    assert {row["lr"] for row in rows} == {0.001, 0.01}
    (found,) = tuned(cells(frame_of(records)), metric("test_loss"), "decay-all")
    assert {row["candidates"] for row in found} == {4}


def test_large_values_in_float32_keep_their_intervals() -> None:
    records = arms("test_mse", 7e4, -5e3, noise=1e3)
    rng = np.random.default_rng(0)
    for record in records:
        record.outcomes["test_mse"] = (record.final("test_mse") + rng.normal(0, 1, 50)).astype(np.float32)  # type: ignore[index]
    assert row_of(records)["test_mse_speaks_about"] == "new test examples"
