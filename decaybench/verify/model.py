"""The models that methods are compared on: the forum network, or a user's own model."""

from collections.abc import Mapping
from typing import Any

import torch

from decaybench.audit.models import Input, build, example
from decaybench.errors import UsageError
from decaybench.parameter_roles.roles import roles
from decaybench.study.study import read_grid
from decaybench.training.model import build_model
from decaybench.verify.lockstep import ModelUnderTest

BATCH, SHAPE, CLASSES = 16, (1, 8, 8), 10


def forum(steps: int, decay: float, lr: float | None = None) -> ModelUnderTest:
    """Makes the thread's network with PReLU, on random images of 8×8."""
    config = read_grid(None, {"activation": "prelu", "strategy": "exclude-alpha", "seeds": 1}).runs()[0]
    model = build_model(config, SHAPE, CLASSES)
    return _prepared(model, (BATCH, *SHAPE), steps, decay, lr)


def own(
    target: str, options: Mapping[str, Any], shape: tuple[int, ...], steps: int, decay: float, lr: float | None
) -> ModelUnderTest:
    """Builds a user's own model, on random batches of a shape.

    Raises:
        UsageError: When it cannot be built or does not take such a batch.
    """
    return _prepared(build(target, options), shape, steps, decay, lr)


def _prepared(
    model: torch.nn.Module, shape: tuple[int, ...], steps: int, decay: float, lr: float | None
) -> ModelUnderTest:
    model.double().train()
    drawn = [example(model, [Input(shape)], seed=step) for step in range(steps)]
    batches = [batch for batch in drawn if isinstance(batch, torch.Tensor)]
    found = roles(model, batches[0])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if lost := [name for name in trainable if found[name] == "unknown"]:
        raise UsageError(f"The role of {', '.join(sorted(lost)[:5])} is unknown: mark it with mark_activation.")
    alphas = frozenset(name for name in trainable if found[name] == "activation")
    return ModelUnderTest(model, alphas, batches, decay, lr)
