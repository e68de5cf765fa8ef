"""Seeds that divide the data anew: the parts, the correction for their overlap, and what a report says of them."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from decaybench.analysis.cells import cells
from decaybench.analysis.frame import load
from decaybench.analysis.statistics import over_seeds, over_splits
from decaybench.analysis.tuning import tuned
from decaybench.cli import app
from decaybench.datasets.arrays import resplit
from decaybench.datasets.embedded import digits, synthetic
from decaybench.errors import UsageError
from decaybench.registry.metrics import TESTED
from decaybench.training.data import load as load_data
from decaybench.training.stacked.cohorts import cohort_key
from helpers import CPU, finish, one, tiny
from made_records import frame_of, made, summary_of

SIZES = {"available": 320, "train": 320, "validation": 40, "test": 130}


def test_a_seed_divides_the_whole_data_set_anew() -> None:
    arrays = synthetic()
    first, second = resplit(arrays, 1), resplit(arrays, 2)
    whole = np.concatenate([arrays.train_x, arrays.test_x])
    for new in (first, second):
        assert new.test_x.shape == arrays.test_x.shape
        again = np.concatenate([new.train_x, new.test_x])
        order = [np.lexsort(x.reshape(len(x), -1).T) for x in (whole, again)]
        np.testing.assert_array_equal(whole[order[0]], again[order[1]])
    assert not np.array_equal(first.test_x, second.test_x)


def test_the_split_is_part_of_a_run_and_the_same_for_all_strategies() -> None:
    by_seed = {seed: [] for seed in (0, 1)}
    for run in tiny(split="seed", seeds=2, activation="prelu", strategy=["decay-all", "exclude-alpha"]).runs():
        by_seed[run.seed].append(run)
    prints = {seed: {load_data(run, CPU).fingerprint for run in runs} for seed, runs in by_seed.items()}
    assert [len(found) for found in prints.values()] == [1, 1]
    assert prints[0] != prints[1] != {load_data(one(), CPU).fingerprint}
    assert cohort_key(by_seed[0][0]) == cohort_key(by_seed[0][1]) != cohort_key(by_seed[1][0])
    assert load_data(one(split="seed"), CPU).source == load_data(one(), CPU).source
    assert "split" not in one().model_dump()  # the runs of before keep their ids


def test_a_limit_on_training_images_does_not_change_what_was_available() -> None:
    whole, few = (load_data(one(train_limit=limit), CPU) for limit in (None, 20))
    assert whole.available == few.available == len(whole.train.y) > len(few.train.y) == 20


def test_the_correction_by_hand() -> None:
    values = [0.1, 0.4, 0.3, 0.6]
    plain, corrected = over_seeds(values), over_splits(values, 130 / 320)
    assert plain is not None
    assert corrected is not None
    assert corrected.error**2 == pytest.approx(np.var(values, ddof=1) * (1 / 4 + 130 / 320))
    assert (corrected.value, corrected.df) == (plain.value, 3)
    assert over_splits([0.1], 0.4) is None


def nearest(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], to: npt.NDArray[np.float32], centroid: bool
) -> object:
    """The classes of images by the nearest mean of a class, or by the nearest image."""
    points = np.stack([x[y == c].mean(0) for c in range(10)]) if centroid else x
    classes = np.arange(10) if centroid else y
    distances = np.square(points).sum(1) - 2 * to @ points.T  # (images, points)
    return classes[distances.argmin(1)]


@pytest.mark.slow
def test_the_corrected_interval_covers_on_real_data_where_students_does_not() -> None:
    """450 digits, of which every seed trains on 320 and tests on 130: the nearest image against the nearest mean."""
    arrays = digits()
    x = np.concatenate([arrays.train_x, arrays.test_x]).reshape(-1, 64).astype(np.float32)
    y = np.concatenate([arrays.train_y, arrays.test_y]).astype(np.int64)
    rng = np.random.default_rng(0)

    def difference(pool: npt.NDArray[np.intp], train: int) -> float:
        order = rng.permutation(pool)
        now, test = order[:train], order[train:]
        right = [float((nearest(x[now], y[now], x[test], c) == y[test]).mean()) for c in (False, True)]
        return right[0] - right[1]

    truth = float(np.mean([difference(np.arange(len(y)), 320) for _ in range(400)]))
    held = {"student": 0, "corrected": 0}
    studies = 150
    for _ in range(studies):
        pool = rng.choice(len(y), 450, replace=False)
        values = [difference(pool, 320) for _ in range(20)]
        for name, estimate in (("student", over_seeds(values)), ("corrected", over_splits(values, 130 / 320))):
            assert estimate is not None
            low, high = estimate.interval()
            held[name] += low <= truth <= high
    assert held["student"] / studies < 0.85
    assert held["corrected"] / studies >= 0.93


def test_a_report_of_seeds_with_splits_of_their_own() -> None:
    records = [
        made(0.8 + 0.01 * seed + gain, name, seed, split="seed", examples=SIZES)
        for name, gain in (("decay-all", 0.0), ("exclude-alpha", 0.05))
        for seed in range(4)
    ]
    records[-1] = made(0.9, "exclude-alpha", 3, split="seed", examples=SIZES)
    row = next(r for r in summary_of(records).rows if r["strategy"] == "exclude-alpha")
    differences = [0.05, 0.05, 0.05, 0.07]
    expected = over_splits(differences, 130 / 320)
    assert expected is not None
    assert row["test_accuracy_speaks_about"] == "new splits of these data"
    assert (row["test_accuracy_difference_low"], row["test_accuracy_difference_high"]) != (None, None)
    width = row["test_accuracy_difference_high"] - row["test_accuracy_difference_low"]
    assert width >= 0.99 * np.diff(expected.interval())[0]
    assert row["test_accuracy_seeds_low"] is None  # Student's interval would promise too much


def test_tuned_intervals_of_splits_are_corrected_too() -> None:
    def width(**fields: object) -> float:
        records = [
            made(0.7 + 0.01 * ((3 * seed + i) % 5), "decay-all", seed, weight_decay=decay, **fields)
            for seed in range(6)
            for i, decay in enumerate((0.1, 0.2))
        ]
        ((row,),) = tuned(cells(frame_of(records)), TESTED[0], "decay-all")
        return float(row["test_high"] - row["test_low"])

    assert width(split="seed", examples=SIZES) == pytest.approx(width() * (1 + 6 * 130 / 320) ** 0.5)


def test_run_and_report_with_a_split_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--dataset", "synthetic,samples=200", "--network", "mlp,width=8", "--activation", "prelu"]
    options += ["--split", "seed", "--seeds", "3", "--epochs", "1", "--weight-decay", "0.1", "--name", "s"]
    done = CliRunner().invoke(app, ["run", *options])
    assert done.exit_code == 0, done.output
    assert "Every seed divided the data anew" in done.output
    runs = load("results/s")
    assert set(runs["split"]) == {"seed"}
    assert runs.groupby("seed")["data_fingerprint"].nunique().max() == 1
    assert runs["data_fingerprint"].nunique() == 3
    rows = json.loads(CliRunner().invoke(app, ["report", "results/s", "--format", "json"]).stdout)
    assert {row["test_accuracy_speaks_about"] for row in rows} == {"new splits of these data"}
    packed = CliRunner().invoke(app, ["pack", "results/s"])
    assert packed.exit_code == 0, packed.output
    again = json.loads(CliRunner().invoke(app, ["report", "results/s", "--format", "json"]).stdout)
    assert again == rows


def test_a_run_alone_and_in_a_stack_has_the_same_split() -> None:
    record = finish(one(split="seed"))[1]
    assert record.fingerprints["data"] == load_data(one(split="seed"), CPU).fingerprint


def test_precision_on_demand_needs_one_split() -> None:
    with pytest.raises(UsageError, match="until needs split = fixed"):
        tiny(split="seed", until=1.0)
    with pytest.raises(UsageError, match="fixed"):
        tiny(split="both")
