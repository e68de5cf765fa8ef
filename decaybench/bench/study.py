"""Times whole studies beside the script a user would write (`decaybench.bench.script`), in the same process.

Both train the same network on Fashion-MNIST with the same batches and the same number of epochs, and both are tested
after every epoch. The script runs once, since it does one run after another; a study runs as the command line would.

What was tried for small networks on a CPU (2 cores of a Zen 3, one thread each): the stock modules one run at a time,
2.3 ms a step for the forum network on images of 8×8; the same under `torch.func.vmap`, which makes grouped convolutions
of them, 1.3 ms a step and run with 32 runs at once; unfolding with the batch as the first dimension 1.4 ms; with the
batch as the last dimension, which is what `training.stacked` does, 0.5 ms. On images of 28×28 it is no faster than
the stock modules: there memory is the limit. How many runs go together is measured (`stacked.cohorts`).
Also tried on images of 28×28, without gain: unfolding row by row, so that the columns stay in the second cache (13.4 ms
a step of a KAF run instead of 11.2), and the stock modules in channels_last (10.1 ms instead of 10.2).
"""

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from decaybench.bench.script import Script, prepare_fashion_mnist
from decaybench.execution.inline import Inline
from decaybench.execution.options import PATIENCE_SECONDS
from decaybench.execution.processes import Processes
from decaybench.execution.scheduler import Scheduler
from decaybench.results.store import StudyFolder
from decaybench.study.config import RunConfig
from decaybench.study.study import read_study
from decaybench.training.data import load
from decaybench.training.model import build_model
from decaybench.training.trainer import Training

Row = dict[str, Any]
CPU = torch.device("cpu")
CONTESTS = (("forum", "prelu", 8), ("forum", "kaf", 8), ("mlp", "prelu", 32))
BATCH, DECAY = 128, 5e-4


def _runs(runs: int, epochs: int, **fields: Any) -> list[RunConfig]:
    fixed = {"batch_size": BATCH, "weight_decay": DECAY, "seeds": runs, "epochs": epochs, "strategy": "decay-all"}
    return read_study(None, {**fixed, **fields}).runs()


def contest(workers: int, epochs: int) -> Iterator[Row]:
    """Compares a study with the script: runs per hour, accuracy, share of the machine's matrix product rate."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_fashion_mnist(Path(folder) / "data")
        rate = multiply_rate()
        for network, activation, count in CONTESTS:
            seconds, accuracy = Script(network, activation).run(data, epochs)
            runs = _runs(count, epochs, dataset="fashion-mnist", network=network, activation=activation)
            study = StudyFolder(Path(folder) / f"{network}-{activation}")
            start = time.perf_counter()
            for _ in Scheduler(Processes("cpu", workers, PATIENCE_SECONDS), study, CPU, workers).run(runs):
                pass
            ours = (time.perf_counter() - start) / count
            scores = [r.final("test_accuracy") for r in study.load().records]
            yield {
                "network": network,
                "activation": activation,
                "runs": count,
                "epochs": epochs,
                "script, runs/h": 3600 / seconds,
                "study, runs/h": 3600 / ours,
                "times as many": seconds / ours,
                "script, test %": 100 * accuracy,
                "study, test %": 100 * sum(scores) / len(scores),
                "share of the matrix product's rate": operations(runs[0]) * epochs / ours / rate,
            }


def whole(device: torch.device, epochs: int, seeds: int = 10) -> Row:
    """Compares a whole study on a GPU (five strategies × PReLU, KAF × seeds) with the script, run after run.

    The script does one run of each activation, which is taken times their number.

    Args:
        device: The device to measure.
        epochs: Number of epochs of every run.
        seeds: Number of seeds of every cell.
    """
    fields = {"dataset": "fashion-mnist", "weight_decay": DECAY, "batch_size": BATCH}
    runs = read_study(None, {**fields, "seeds": seeds, "epochs": epochs}).runs()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_fashion_mnist(Path(folder) / "data")
        once = [Script("forum", activation).run(data, epochs, device) for activation in ("prelu", "kaf")]
        script = sum(seconds for seconds, _ in once) * len(runs) / 2
        study = StudyFolder(Path(folder) / "study")
        start = time.perf_counter()
        for _ in Scheduler(Inline(device), study, device).run(runs):
            pass
        ours = time.perf_counter() - start
        scores = [r.final("test_accuracy") for r in study.load().records]
    return {
        "runs": len(runs),
        "epochs": epochs,
        "goals": "60 s, 40 times as fast",
        "study, s": ours,
        "script, s": script,
        "times as fast": script / ours,
        "script, test %": 50 * sum(accuracy for _, accuracy in once),
        "study, test %": 100 * sum(scores) / len(scores),
    }


def operations(config: RunConfig) -> float:
    """Counts the floating-point operations of matrix products and convolutions in one epoch of a run."""
    data = load(config, CPU)
    model = build_model(config, data.shape, data.classes)
    with FlopCounterMode(display=False) as counter:
        x, y = data.train.x[:BATCH], data.train.y[:BATCH]
        torch.autograd.backward(F.cross_entropy(model(x), y))
    return float(counter.get_total_flops()) * len(data.train.y) / BATCH


def multiply_rate() -> float:
    """Measures the floating-point operations per second of a large matrix product, with all cores."""
    a = torch.randn(2048, 2048)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return float(2 * 2048**3) / min(times)


def overhead(runs: int = 40) -> Row:
    """Measures what a run costs beyond its training steps and its evaluations, inline."""
    spent = [0.0]

    def timed(real: Any) -> Any:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            out = real(*args)
            spent[0] += time.perf_counter() - start
            return out

        return call

    configs = _runs(runs, 12, dataset="digits", activation="kaf", batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):  # the first one to warm up
            spent[0] = 0.0
            patched = {name: timed(getattr(Training, name)) for name in ("_step", "_scores")}
            with mock.patch.multiple(Training, **patched):
                start = time.perf_counter()
                for _ in Scheduler(Inline(CPU), StudyFolder(Path(folder) / str(number)), CPU).run(configs):
                    pass
            whole = time.perf_counter() - start
    return {
        "study": "digits forum kaf, 12 epochs",
        "runs": runs,
        "ms per run": 1e3 * whole / runs,
        "of it beyond steps and tests": 1e3 * (whole - spent[0]) / runs,
    }


def growth(counts: tuple[int, ...] = (10, 100, 1000)) -> Iterator[Row]:
    """Measures time and memory for more and more runs of a tiny network, inline."""
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for count in (counts[0], *counts):  # the first one to warm up
            fields: dict[str, Any] = {"dataset": "synthetic", "network": "mlp,width=16", "activation": "prelu"}
            configs = _runs(count, 2, batch_size=64, **fields)
            study = StudyFolder(Path(tempfile.mkdtemp(dir=folder)))
            start = time.perf_counter()
            for _ in Scheduler(Inline(CPU), study, CPU).run(configs):
                pass
            each = 1e3 * (time.perf_counter() - start) / count
            if first is None:
                first = each
                continue
            first = each if count == counts[0] else first
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            yield {"runs": count, "ms per run": each, f"times that of {counts[0]}": each / first, "peak MiB": memory}
