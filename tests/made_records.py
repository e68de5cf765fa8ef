"""Records as training would write them, with chosen numbers, for tests of what is concluded from them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from decaybench.analysis.comparison import ComparisonSettings, Summary, summarize
from decaybench.analysis.frame import runs_frame
from decaybench.results.record import METRICS, Layer, Record
from decaybench.results.store import Loaded
from helpers import one


def made(accuracy: float, strategy: str = "decay-all", seed: int = 0, **more: Any) -> Record:
    """A record as training would write it, with a chosen test accuracy, loss and outcome of each test image."""
    axes = ("activation", "weight_decay", "batch_size", "lr", "network", "optimizer", "clip_norm", "split")
    fields = {k: v for k, v in more.items() if k in axes}
    config = one(strategy=strategy, epochs=1, **fields).model_copy(update={"seed": seed})
    alphas = np.asarray(more.get("alphas", [0.25, 0.005, -0.5, 0.3]), np.float32)
    layer = Layer("2", "PReLU", alphas, alphas, None, 0.5, 1.5, 0.25)
    return Record(
        run_id=config.run_id,
        config=config.model_dump(),
        fingerprints=more.get("fingerprints", {"data": "d", "initial": f"i{seed}", "batches": f"b{seed}"}),
        diverged=more.get("diverged"),
        history={key: [accuracy if key.endswith("accuracy") else more.get("loss", 0.5)] for key in METRICS},
        outcomes=more.get("outcomes", {}),
        layers=() if more.get("activation") == "relu" else (layer,),
        provenance={"device": "cpu", "seconds": 1.0, **({"examples": more["examples"]} if "examples" in more else {})},
    )


def frame_of(records: Iterable[Record]) -> pd.DataFrame:
    """The frame that analysis works on."""
    return runs_frame(Loaded(records=list(records)))


def summary_of(records: Iterable[Record], **settings: Any) -> Summary:
    """The summary of records."""
    return summarize(frame_of(records), ComparisonSettings(**settings))


def pairs(differences: list[float], **fields: Any) -> list[Record]:
    """Two strategies whose test accuracies differ so, seed by seed."""
    base = [0.8 + 0.013 * (s % 3) for s in range(len(differences))]
    ours = [made(b + d, "exclude-alpha", s, **fields) for s, (b, d) in enumerate(zip(base, differences, strict=True))]
    return ours + [made(b, "decay-all", s, **fields) for s, b in enumerate(base)]


def with_outcomes(correct: Any, losses: Any, strategy: str, seed: int, **fields: Any) -> Record:
    """A record with outcomes, whose accuracy and loss are theirs."""
    outcomes = {"test_accuracy": np.asarray(correct, bool), "test_loss": np.asarray(losses, np.float16)}
    accuracy, loss = float(outcomes["test_accuracy"].mean()), float(np.mean(losses))
    return made(accuracy, strategy, seed, loss=loss, outcomes=outcomes, **fields)
