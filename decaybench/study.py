"""Runs what a study still lacks, one run after another, and keeps each as soon as it is finished."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from decaybench.config import RunConfig
from decaybench.data import Data, load
from decaybench.device import provenance
from decaybench.model import build_model
from decaybench.results import Record, StudyFolder
from decaybench.train import Epoch, make_plan, train


@dataclass(frozen=True)
class Event:
    """Something happened: a run began (neither), an epoch ended, or a run was finished and is kept."""

    config: RunConfig
    epoch: Epoch | None = None
    record: Record | None = None


def _parts(config: RunConfig) -> tuple[str, ...]:
    """What a model and its plan are built from."""
    return tuple(s.label for s in (config.network, config.activation, config.strategy, config.optimizer))


def run_missing(missing: list[RunConfig], folder: StudyFolder, device: torch.device) -> Iterator[Event]:
    """Trains these runs in order and writes each record when it is finished.

    Every network and plan is built once before the first run, so that what cannot work is said at once.

    Raises:
        DecaybenchError: For data that is missing and networks that do not fit it.
    """
    cache: dict[tuple[str, float, int | None], Data] = {}

    def data_of(config: RunConfig) -> Data:
        key = config.data_key()
        if key not in cache:
            cache.clear()  # one data set in memory at a time
            cache[key] = load(config, device)
        return cache[key]

    for config in {(c.data_key(), *_parts(c)): c for c in missing}.values():
        data = data_of(config)
        make_plan(config, build_model(config, data.shape, data.classes))
    about = provenance(device)
    for config in missing:
        yield Event(config)
        start = time.perf_counter()
        training = train(config, data_of(config))
        while True:
            try:
                yield Event(config, epoch=next(training))
            except StopIteration as done:
                body: Record = done.value
                break
        seconds = round(time.perf_counter() - start, 3)
        record = {**body, "provenance": {**about, "seconds": seconds}}
        folder.write(record)
        yield Event(config, record=record)
