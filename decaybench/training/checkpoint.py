"""Checkpoints: the whole state of a training as bytes, and back, with the numbers of one never stopped."""

import io
import json
from typing import Any

import torch

from decaybench.study.config import RunConfig
from decaybench.training.trainer import Epoch, Training


def save(training: Training, provenance: dict[str, Any] | None = None, seconds: float = 0.0) -> bytes:
    """Writes the state of a training between two steps.

    Args:
        training: The training.
        provenance: Where it was computed so far.
        seconds: How long that took.
    """
    state = {
        "configs": [run.config.model_dump_json() for run in training.runs],
        "place": training.state_dict(),
        "parameters": dict(training.net.parameters()),
        "optimizers": [[o.state_dict() for o in group.plan.optimizers] for group in training.groups],
        "schedulers": [[s.state_dict() for s in group.schedulers] for group in training.groups],
        "runs": [
            {"scores": [e.scores for e in run.history], "over": run.over, "quantiles": run.statistics.quantiles}
            for run in training.runs
        ],
        "provenance": json.dumps(provenance or {}),
        "seconds": seconds,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _load(content: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def configs(content: bytes) -> list[RunConfig] | None:
    """Reads which runs a checkpoint is of; None for one that another version wrote."""
    try:
        return [RunConfig.model_validate_json(text) for text in _load(content)["configs"]]
    except Exception:  # whatever the content of another version leads to
        return None


@torch.no_grad()
def restore(training: Training, content: bytes) -> tuple[dict[str, Any], float]:
    """Brings a new training of the same runs to the saved state.

    Returns:
        Where it was computed so far, and how many seconds that took.
    """
    state = _load(content)
    for name, parameter in training.net.parameters().items():
        parameter.copy_(state["parameters"][name])
    for group, optimizers, schedulers in zip(training.groups, state["optimizers"], state["schedulers"], strict=True):
        for optimizer, saved in zip(group.plan.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(group.schedulers, schedulers, strict=True):
            scheduler.load_state_dict(saved)
    for run, saved in zip(training.runs, state["runs"], strict=True):
        run.history = [Epoch(run.config, i, scores) for i, scores in enumerate(saved["scores"], start=1)]
        run.over, run.statistics.quantiles = saved["over"], saved["quantiles"]
    training.load_state_dict(state["place"])
    return json.loads(state["provenance"]), float(state["seconds"])
