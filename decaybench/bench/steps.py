"""Times training steps with one thread, a study's own or those of a plain loop, as a process of its own."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from decaybench.activations import PReLU
from decaybench.bench.script import DECAY, MOMENTUM, RATE, PlainKAF
from decaybench.execution.job import single_thread
from decaybench.study.config import RunConfig
from decaybench.study.study import read_grid
from decaybench.training.data import Data, Part, load
from decaybench.training.model import build_model
from decaybench.training.trainer import Training

CPU = torch.device("cpu")
STEPS, REPEATS = 24, 5  # steps that are timed together, at most; how often
ENOUGH_SECONDS = 0.3  # of one repetition
CONTENDERS = ("study, 8 runs", "study, 1 run", "loop, our modules", "loop, torch's modules", "loop, nn.ReLU")


def run(contender: str, networks: list[list[Any]]) -> list[float]:
    """Times one contender on each network, given as [dataset, network, activation, batch size].

    Returns:
        Milliseconds a step and run, the median of some repetitions.
    """
    with single_thread(CPU):
        return [_timed(contender, *network) for network in networks]


def configured(dataset: str, network: str, activation: str, batch: int, runs: int = 1) -> list[RunConfig]:
    """Returns runs that differ in their seeds only."""
    fields = {"dataset": dataset, "network": network, "activation": activation, "batch_size": batch, "seeds": runs}
    fixed = {"optimizer": f"sgd,momentum={MOMENTUM}", "lr": RATE, "weight_decay": DECAY, "strategy": "decay-all"}
    return read_grid(None, {**fields, **fixed, "epochs": 1}).runs()


def _timed(contender: str, dataset: str, network: str, activation: str, batch: int) -> float:
    count = 8 if contender == "study, 8 runs" else 1
    configs = configured(dataset, network, activation, batch, count)
    data = _long(load(configs[0], CPU), batch * (STEPS * REPEATS + 3))
    step = _study(configs, data) if contender.startswith("study") else _loop(contender, configs[0], data)
    step()
    start = time.perf_counter()
    step()
    steps = max(1, min(STEPS, int(ENOUGH_SECONDS / (time.perf_counter() - start))))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        times.append(1e3 * (time.perf_counter() - start) / steps / count)
    return sorted(times)[REPEATS // 2]


def _long(data: Data, images: int) -> Data:
    """Repeats the training part, so that no epoch ends while steps are timed."""
    again = -(-images // len(data.train.y))
    train = Part(data.train.x.repeat(again, 1, 1, 1), data.train.y.repeat(again))
    return replace(data, train=train)


def _study(configs: list[RunConfig], data: Data) -> Callable[[], object]:
    stacked = None if len(configs) == 1 else Training(configs[:1], data).stacked
    if stacked is False:  # such runs train one by one
        trainings = [Training([config], data) for config in configs]
        return lambda: [training.advance() for training in trainings]
    return Training(configs, data).advance


def _loop(contender: str, config: RunConfig, data: Data) -> Callable[[], object]:
    """A loop as people write it, on tensors in memory; kernels and images lie channels_last, which is faster."""
    model = build_model(config, data.shape, data.outputs)
    if contender != "loop, our modules":
        _exchange(model, relu=contender == "loop, nn.ReLU")
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    batches = torch.split(torch.randperm(len(data.train.y)), config.batch_size)
    place = iter(batches)

    def step() -> None:
        index = next(place)
        x = data.train.x[index].contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), data.train.y[index]))
        optimizer.step()

    return step


def _exchange(model: nn.Module, relu: bool) -> None:
    """Replaces our activations by torch's PReLU and the KAF's formula, or all by nn.ReLU."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ not in ("PReLU", "KAF"):
                continue
            channels = next(child.parameters()).shape[0]
            stock = nn.PReLU(channels) if isinstance(child, PReLU) else PlainKAF(channels)
            setattr(parent, name, nn.ReLU() if relu else stock)


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
