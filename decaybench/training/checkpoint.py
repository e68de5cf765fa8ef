"""Checkpoints: the whole state of a training as bytes, and back, with the numbers of one never stopped."""

import io
import json
from typing import Any

import torch
from torch.optim import Optimizer

from decaybench.study.config import RunConfig
from decaybench.training.trainer import Epoch, Training

FORMAT = 2  # another one cannot be read: its runs begin anew


def save(training: Training, provenance: dict[str, Any] | None = None, seconds: float = 0.0) -> bytes:
    """Writes the state of a training between two steps.

    Args:
        training: The training.
        provenance: Where it was computed so far.
        seconds: How long that took.
    """
    state = {
        "format": FORMAT,
        "configs": [run.config.model_dump_json() for run in training.runs],
        "place": training.state_dict(),
        "parameters": dict(training.net.parameters()),
        "optimizers": [[o.state_dict() for o in group.plan.optimizers] for group in training.groups],
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


def _here(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Returns a saved state of an optimizer with what depends on the device as it is here."""
    own = [{k: group[k] for k in ("fused", "capturable", "foreach") if k in group} for group in optimizer.param_groups]
    return {**saved, "param_groups": [g | here for g, here in zip(saved["param_groups"], own, strict=True)]}


def _load(content: bytes) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def configs(content: bytes) -> list[RunConfig] | None:
    """Reads which runs a checkpoint is of; None for one that another version wrote."""
    try:
        state = _load(content)
        return [RunConfig.model_validate_json(text) for text in state["configs"]] if state["format"] == FORMAT else None
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
    for group, optimizers in zip(training.groups, state["optimizers"], strict=True):
        for optimizer, saved in zip(group.plan.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(_here(optimizer, saved))
    for run, saved in zip(training.runs, state["runs"], strict=True):
        run.history = [Epoch(run.config, i, scores) for i, scores in enumerate(saved["scores"], start=1)]
        run.over, run.statistics.quantiles = saved["over"], saved["quantiles"]
    training.load_state_dict(state["place"])
    return json.loads(state["provenance"]), float(state["seconds"])
