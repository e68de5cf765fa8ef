"""Times whole studies beside the scripts a user would write. Every contender is a process of its own.

What was tried for small networks on a CPU, one thread, and left: the stock modules under `torch.func.vmap`, which makes
grouped convolutions of them; unfolding into one batched matrix product, with the batch as the last dimension (on images
of 28×28 the columns fill the caches: 3 times the time of the direct convolution); one oneDNN convolution for each
replica (1.5 to 2 times); coefficients of a KAF looked up in registers (no gain). Not tried: one C++ operation for the
whole step.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from decaybench.bench.script import BATCH, DECAY, MOMENTUM, RATE, prepare_fashion_mnist
from decaybench.bench.steps import CONTENDERS, CPU, configured
from decaybench.execution.inline import Inline
from decaybench.execution.scheduler import Scheduler
from decaybench.results.store import StudyFolder
from decaybench.study.config import RunConfig
from decaybench.study.study import read_grid
from decaybench.training.data import load
from decaybench.training.model import build_model
from decaybench.training.trainer import Training

Row = dict[str, Any]
# Network, activation, runs of the study, and how many times as many runs an hour as the tutorial's script are the goal.
CONTESTS = (("forum", "prelu", 8, 5.5), ("forum", "kaf", 8, 28.0), ("mlp", "prelu", 32, 15.0))
STRONG_GOAL = 1.8  # times as many as the strong script, a process per core
SHARE_GOALS = {("forum", "prelu"): 0.60, ("forum", "kaf"): 0.50}  # of the matrix product's rate, in the steps
NETWORKS: list[list[Any]] = [
    ["fashion-mnist", "forum", "prelu", 128],
    ["fashion-mnist", "forum", "kaf", 128],
    ["fashion-mnist", "mlp", "prelu", 128],
    ["fashion-mnist", "mlp", "kaf", 128],
    ["fashion-mnist", "kafnet", "kaf", 128],
    ["fashion-mnist", "vgg,width=8", "prelu", 128],
    ["digits", "forum", "prelu", 64],
    ["digits", "forum", "kaf", 64],
    ["digits", "mlp", "prelu", 64],
    ["digits", "vgg", "prelu", 64],
    ["digits", "vgg,norm=true", "prelu", 64],
    ["digits", "resnet18", "prelu", 64],
]


def _python(*arguments: str, **environment: str) -> str:
    """Runs Python as a new process and returns what it prints."""
    whole = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=whole)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    _python(*arguments)
    return time.perf_counter() - start


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float]) -> str:
    return f"{_median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


RATE_CODE = (
    "import time, torch; torch.set_num_threads(THREADS); a = torch.randn(2048, 2048); times = []\n"
    "for _ in range(8): start = time.perf_counter(); a @ a; times.append(time.perf_counter() - start)\n"
    "print(2 * 2048**3 / min(times))"
)


def multiply_rate(threads: int) -> float:
    """Measures the floating-point operations per second of a large matrix product, in a process of its own."""
    return float(_python("-c", RATE_CODE.replace("THREADS", str(threads))))


def steps(rounds: int) -> Iterator[Row]:
    """Times a training step of every built-in network: in a study, and in plain loops. One thread, one at a time."""
    rates, times = [], []
    for _ in range(rounds):
        rates.append(multiply_rate(1))
        given = [json.dumps({"contender": name, "networks": NETWORKS}) for name in CONTENDERS]
        times.append([json.loads(_python("-m", "decaybench.bench.steps", text)) for text in given])
    for number, (dataset, network, activation, batch) in enumerate(NETWORKS):
        of = {name: [t[i][number] for t in times] for i, name in enumerate(CONTENDERS)}
        work = operations(configured(dataset, network, activation, batch)[0], batch)
        share = [work / (1e-3 * t) / rate for t, rate in zip(of["study, 8 runs"], rates, strict=True)]
        ratio = [a / b for a, b in zip(of["loop, our modules"], of["study, 8 runs"], strict=True)]
        goal = SHARE_GOALS.get((network, activation)) if dataset == "fashion-mnist" else None
        yield {
            "dataset": dataset,
            "network": network,
            "activation": activation,
            **{f"{name}, ms": _median(series) for name, series in of.items()},
            "loop with our modules ÷ study": _spread(ratio),
            "share of the matrix rate": _spread(share),
            "goal": goal,
        }


def contest(cores: int, rounds: int) -> Iterator[Row]:
    """Compares a study with both scripts on Fashion-MNIST: seconds an epoch of one run, and starting up apart.

    An epoch of a script is what one epoch takes more than none, of a study half of what three take more than one.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = str(prepare_fashion_mnist(Path(folder) / "data"))
        for network, activation, runs, goal in CONTESTS:
            found: dict[str, list[float]] = {}
            for number in range(rounds):
                place = Path(folder) / f"{network}-{activation}-{number}"
                for name, seconds in _epochs(network, activation, runs, cores, data, place).items():
                    found.setdefault(name, []).append(seconds)
            pairs = {k: zip(found[k], found["study"], strict=True) for k in ("tutorial", "strong")}
            ratios = {k: [a / b for a, b in both] for k, both in pairs.items()}
            yield {
                "network": network,
                "activation": activation,
                "runs": runs,
                **{f"{name}, s": _median(series) for name, series in found.items()},
                "tutorial ÷ study": _spread(ratios["tutorial"]),
                "goal": goal,
                "strong ÷ study": _spread(ratios["strong"]),
                "its goal": STRONG_GOAL,
            }


def _epochs(network: str, activation: str, runs: int, cores: int, data: str, place: Path) -> dict[str, float]:
    """Measures seconds of one epoch of one run for each contender, and a study's start."""
    fixed = {"network": network, "activation": activation, "folder": data}
    texts = [[json.dumps({**fixed, "style": s, "epochs": e}) for e in (0, 1)] for s in ("tutorial", "strong")]
    tutorial = [_seconds("-m", "decaybench.bench.script", text) for text in texts[0]]
    strong = [_together(cores, "-m", "decaybench.bench.script", text) for text in texts[1]]
    study = {}
    for epochs in (1, 3):
        options = {"dataset": "fashion-mnist", "network": network, "activation": activation, "seeds": str(runs)}
        options |= {"strategy": "decay-all", "optimizer": f"sgd,momentum={MOMENTUM}", "lr": str(RATE)}
        options |= {"weight-decay": str(DECAY), "batch-size": str(BATCH), "epochs": str(epochs)}
        options |= {"workers": str(cores), "results": str(place / str(epochs))}
        flat = [text for name, value in options.items() for text in (f"--{name}", value)]
        study[epochs] = _seconds("-m", "decaybench", "run", "--device", "cpu", *flat)
    each = (study[3] - study[1]) / 2 / runs
    return {
        "tutorial": tutorial[1] - tutorial[0],
        "strong": (strong[1] - strong[0]) / cores,
        "study": each,
        "start of the tutorial": tutorial[0],
        "start of the study": study[1] - each * runs,
    }


def _together(count: int, *arguments: str) -> float:
    """Runs some processes at once, and returns the seconds until the last one ends."""
    start = time.perf_counter()
    running = [subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) for _ in range(count)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"{' '.join(arguments)} failed")
    return time.perf_counter() - start


def whole(device: torch.device, epochs: int, seeds: int = 10) -> Row:
    """Compares a whole study on a GPU (five strategies × PReLU, KAF × seeds) with the tutorial's script, run after run.

    The script does one run of each activation, which is taken times their number.

    Args:
        device: The device to measure.
        epochs: Number of epochs of every run.
        seeds: Number of seeds of every cell.
    """
    fields = {"dataset": "fashion-mnist", "weight_decay": DECAY, "batch_size": BATCH}
    runs = read_grid(None, {**fields, "seeds": seeds, "epochs": epochs}).runs()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_fashion_mnist(Path(folder) / "data")
        given = {"style": "tutorial", "network": "forum", "epochs": epochs, "folder": str(data), "device": str(device)}
        texts = [json.dumps({**given, "activation": activation}) for activation in ("prelu", "kaf")]
        once = [json.loads(_python("-m", "decaybench.bench.script", text)) for text in texts]
        script = sum(found["seconds"] for found in once) * len(runs) / 2
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
        "script, held-out %": 50 * sum(found["accuracy"] for found in once),
        "study, test %": 100 * sum(scores) / len(scores),
    }


def operations(config: RunConfig, images: int) -> float:
    """Counts the floating-point operations of products and convolutions, forward and backward, for some images."""
    data = load(config, CPU)
    model = build_model(config, data.shape, data.outputs)
    with FlopCounterMode(display=False) as counter:
        x, y = data.train.x[:images], data.train.y[:images]
        torch.autograd.backward(F.cross_entropy(model(x), y))
    return float(counter.get_total_flops())


def _runs(runs: int, epochs: int, **fields: Any) -> list[RunConfig]:
    fixed = {"batch_size": BATCH, "weight_decay": DECAY, "seeds": runs, "epochs": epochs, "strategy": "decay-all"}
    return read_grid(None, {**fixed, **fields}).runs()


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
