"""What several tests need: a tiny study, and a run of it."""

from pathlib import Path
from typing import Any

import torch

from decaybench.results.record import Record
from decaybench.study.config import RunConfig
from decaybench.study.study import Study, read_grid
from decaybench.training.data import Data, load
from decaybench.training.trainer import Epoch, Finished, train

REPOSITORY = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def tiny(**overrides: Any) -> Study:
    """A study that takes a second: synthetic images, small dense network."""
    fields: dict[str, Any] = {"dataset": "synthetic,samples=200", "network": "mlp,width=16", "epochs": 2, "seeds": 1}
    fields["weight_decay"] = 0.002
    return read_grid(None, {"name": "tiny", **fields, **overrides})


def one(**overrides: Any) -> RunConfig:
    """The single run of a tiny study."""
    (run,) = tiny(**{"strategy": "exclude-alpha", "activation": "prelu", **overrides}).runs()
    return run


def finish(config: RunConfig, data: Data | None = None) -> tuple[list[Epoch], Record]:
    """Trains a run to its end: its epochs and its record."""
    *epochs, last = train([config], data or load(config, CPU))
    assert isinstance(last, Finished)
    return [e for e in epochs if isinstance(e, Epoch)], last.record
