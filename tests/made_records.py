"""Records as training would write them, with chosen numbers, for tests of what is concluded from them."""

from typing import Any

import numpy as np

from decaybench.results.record import encode
from helpers import one


def made(accuracy: float, strategy: str = "decay-all", seed: int = 0, **more) -> dict:
    """A record as training would write it, with a chosen test accuracy."""
    fields = {k: v for k, v in more.items() if k in ("activation", "weight_decay", "batch_size", "lr")}
    config = one(strategy=strategy, epochs=1, **fields).model_copy(update={"seed": seed})
    keys = [f"{p}_{k}" for p in ("train", "validation", "test") for k in ("loss", "accuracy")]
    alphas = np.asarray(more.get("alphas", [0.25, 0.005, -0.5, 0.3]), np.float32)
    layer = {"name": "2", "type": "PReLU", "shapes": {"weight": [4]}, "quantiles": [], "extra": 1}
    layer |= {
        "distance_from_relu": 0.25,
        "distance_from_start": 0.5,
        "distance_from_zero": 1.5,
        "initial": encode(alphas),
        "final": encode(alphas),
    }
    return {
        "run_id": config.run_id,
        "config": config.model_dump(),
        "fingerprints": more.get("fingerprints", {"data": "d", "initial": f"i{seed}", "batches": f"b{seed}"}),
        "diverged": more.get("diverged"),
        "history": {k: [accuracy] for k in keys},
        "layers": [] if more.get("activation") == "relu" else [layer],
        "provenance": {"device": "cpu", "seconds": 1.0},
    }


def pairs(differences: list[float], **fields: Any) -> list[dict]:
    """Two strategies whose test accuracies differ so, seed by seed."""
    base = [0.8 + 0.013 * (s % 3) for s in range(len(differences))]
    ours = [made(b + d, "exclude-alpha", s, **fields) for s, (b, d) in enumerate(zip(base, differences, strict=True))]
    return ours + [made(b, "decay-all", s, **fields) for s, b in enumerate(base)]
