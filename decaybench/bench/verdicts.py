"""Measures what verdicts and intervals promise, on real runs: false alarms where nothing differs, and coverage.

A real null: two runs of one seed that are the same until their last epoch, and then see other batches. Nothing makes
one of them better than the other. Coverage: one contrast over many seeds, tested on many images; the truth is the mean
over all of them, and each interval sees some seeds and some images.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from decaybench.analysis.evidence import NEW_EXAMPLES, Evidence, judged
from decaybench.analysis.statistics import Estimate, crossed, over_seeds
from decaybench.datasets.arrays import Arrays
from decaybench.execution.job import single_thread
from decaybench.registry.build import construct
from decaybench.registry.metrics import TESTED, Metric
from decaybench.study.config import RunConfig
from decaybench.study.study import read_grid
from decaybench.training.data import Data, Part, load
from decaybench.training.seeding import generator
from decaybench.training.trainer import Finished, Training

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]
CPU = torch.device("cpu")
STUDIES = 2000  # that are drawn from the runs, for each row
TOGETHER = 4  # runs
SEEDS = (2, 3, 5, 8, 20)
TRAINED, SEEN = 5000, 500  # Fashion-MNIST: images to train on, and that an interval sees of the other 65,000


class Tables(NamedTuple):
    """What runs made of test images.

    Attributes:
        correct, losses: (seeds, images).
    """

    correct: Floats
    losses: Floats


def false_alarms(seeds: int) -> Iterator[Row]:
    """Counts verdicts where nothing differs: studies of some seeds, drawn from many real nulls."""
    rng = np.random.default_rng(0)
    for activation in ("prelu", "kaf"):
        first, second = _nulls(activation, seeds)
        for n in SEEDS:
            alarms = {"accuracy": 0, "loss": 0, "either": 0, "t over seeds": 0}
            for _ in range(STUDIES):
                rows = rng.choice(seeds, n, replace=False)
                signs = rng.choice([-1.0, 1.0], (n, 1))  # which of the two is called the first does not matter
                tables = [signs * (a[rows] - b[rows]) for a, b in zip(first, second, strict=True)]
                evidence = [_evidence(metric, table) for metric, table in zip(TESTED, tables, strict=True)]
                found = [e is not None and e.verdict in ("better", "worse") for e in judged(evidence, [False] * 2)]
                alone = over_seeds(tables[0].mean(1).tolist())
                alarms["accuracy"] += found[0]
                alarms["loss"] += found[1]
                alarms["either"] += any(found)
                alarms["t over seeds"] += alone is not None and alone.p_value() < 0.05
            yield {
                "digits, forum": activation,
                "seeds": n,
                **{f"false alarms, {k}": v / STUDIES for k, v in alarms.items()},
            }


def _evidence(metric: Metric, table: Floats) -> Evidence:
    return Evidence(metric, table.mean(1).tolist(), 1.0, crossed(table), NEW_EXAMPLES, metric.margin_at(1.0))


def _nulls(activation: str, seeds: int) -> list[Tables]:
    fields = {"activation": activation, "strategy": "decay-all", "weight_decay": 0.002, "seeds": seeds}
    configs = read_grid(None, {**fields, "dataset": "digits", "primary": None}).runs()
    data = load(configs[0], CPU)

    def other_batches(side: int) -> Callable[[Training], None]:
        def change(training: Training) -> None:
            for seed, batches in training._batches.items():
                order = generator(seed + (side + 1) * 10**6, "order").get_state()
                batches.restore({**batches.state(), "order": order})

        return change

    return [_trained(configs, data, other_batches(side)) for side in (0, 1)]


def _trained(configs: list[RunConfig], data: Data, before_last: Callable[[Training], None] | None = None) -> Tables:
    """Trains runs, calls a function before their last epoch, and returns what they made of the test part."""
    outcomes: dict[int, Any] = {}
    with single_thread(CPU):
        for start in range(0, len(configs), TOGETHER):
            training = Training(configs[start : start + TOGETHER], data)
            changed = before_last is None
            while not training.finished:
                if not changed and before_last is not None and training.epoch == configs[0].epochs - 1:
                    before_last(training)
                    changed = True
                for event in training.advance():
                    if isinstance(event, Finished) and event.record.outcomes:
                        outcomes[event.config.seed] = event.record.outcomes
    ordered = [outcomes[seed] for seed in sorted(outcomes)]
    return Tables(*(np.stack([o[metric.name] for o in ordered]).astype(np.float64) for metric in TESTED))


CONTRASTS = (("kaf", 0.1), ("kaf", 0.01), ("prelu", 0.01))


def coverage(seeds: int) -> Iterator[Row]:
    """Counts how often intervals hold the truth: exclude-alpha against decay-all, Fashion-MNIST."""
    rng = np.random.default_rng(0)
    for activation, decay in CONTRASTS:
        tables = [_fashion(activation, decay, strategy, seeds) for strategy in ("exclude-alpha", "decay-all")]
        for metric in ("correct", "losses"):
            whole = getattr(tables[0], metric) - getattr(tables[1], metric)  # (seeds, 65,000)
            truth = float(whole.mean())
            for n in SEEDS:
                held = {"crossed": 0, "t over seeds": 0}
                found = dict(held)
                for _ in range(STUDIES // 4):
                    rows, images = rng.choice(len(whole), n, replace=False), rng.choice(whole.shape[1], SEEN, False)
                    part = whole[np.ix_(rows, images)]
                    both = {"crossed": crossed(part), "t over seeds": over_seeds(part.mean(1).tolist())}
                    for name, estimate in both.items():
                        held[name] += _holds(estimate, truth)
                        found[name] += not _holds(estimate, 0.0)
                yield {
                    "Fashion-MNIST, forum": f"{activation}, λ = {decay:g}",
                    "metric": {"correct": "accuracy", "losses": "loss"}[metric],
                    "truth": truth,
                    "seeds": n,
                    **{f"coverage, {k}": v / (STUDIES // 4) for k, v in held.items()},
                    **{f"power, {k}": v / (STUDIES // 4) for k, v in found.items()},
                }


def _holds(estimate: Estimate | None, truth: float) -> bool:
    if estimate is None:
        return abs(truth) < 1e-12
    low, high = estimate.interval()
    return low <= truth <= high


def _fashion(activation: str, decay: float, strategy: str, seeds: int) -> Tables:
    fields = {"activation": activation, "strategy": strategy, "weight_decay": decay, "seeds": seeds}
    configs = read_grid(None, {**fields, "dataset": "fashion-mnist", "epochs": 8, "batch_size": 128}).runs()
    few, many = _few_and_many(configs[0])

    def test_on_many(training: Training) -> None:
        training._data = many  # only the last epoch's outcomes are asked for

    return _trained(configs, few, test_on_many)


def _few_and_many(config: RunConfig) -> tuple[Data, Data]:
    """Makes Fashion-MNIST with few images to train on, and few others or all others to test on."""
    arrays = construct("dataset", config.dataset)
    assert isinstance(arrays, Arrays)
    x = torch.tensor(np.concatenate([arrays.train_x, arrays.test_x]), dtype=torch.float32)
    y = torch.tensor(np.concatenate([arrays.train_y, arrays.test_y])).long()
    std, mean = torch.std_mean(x[:TRAINED])
    x = (x - mean) / std
    train, test = Part(x[:TRAINED], y[:TRAINED]), Part(x[TRAINED:], y[TRAINED:])
    part = Part(test.x[:SEEN], test.y[:SEEN])
    few, many = (Data(train, part, tested, arrays.classes, "", "", TRAINED) for tested in (part, test))
    return few, many
