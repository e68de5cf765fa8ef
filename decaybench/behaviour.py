"""What a module of unknown type does with its input, found by running it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from decaybench.errors import UsageError
from decaybench.known import Role
from decaybench.probe import probe

TOLERANCE = 1e-4  # of the output's size, far above float32 rounding and far below any nonlinearity worth the name


def captured_inputs(model: nn.Module, owners: Iterable[nn.Module], example: Tensor) -> dict[nn.Module, Tensor]:
    """The first tensor each of these modules is called with when the model sees an example input.

    Raises:
        UsageError: When the model does not take this input, with what it says.
    """
    seen: dict[nn.Module, Tensor] = {}

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) == 1 and isinstance(arguments[0], Tensor) and arguments[0].is_floating_point():
            seen.setdefault(module, arguments[0].detach())

    handles = [owner.register_forward_pre_hook(hook) for owner in owners]
    try:
        probe(model, example)
    except Exception as error:
        raise UsageError(
            f"The model fails on an example input of {tuple(example.shape)}: {type(error).__name__}: {error}."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def role_by_behaviour(module: nn.Module, parameter: nn.Parameter, x: Tensor) -> Role:
    """Classifies a parameter by what its module does around the input it really gets.

    Element-wise and nonlinear is ``activation``; element-wise and affine is ``scale`` where the parameter
    changes the slope and ``bias`` where it only shifts; everything else is ``weight``.

    Args:
        module: The owner; called as ``module(x)``.
        parameter: One of its parameters.
        x: The captured input, any shape.
    """
    try:
        if not _elementwise(module, x):
            return "weight"
        if not _affine(module, x):
            return "activation"
        slope = probe(module, x + 1) - probe(module, x)
        kept = parameter.detach().clone()
        try:
            parameter.data.add_(1.0)
            changed = probe(module, x + 1) - probe(module, x)
        finally:  # whatever the module says to that, the model stays as it was
            parameter.data.copy_(kept)
    except Exception:  # it cannot be called by itself, so nothing is known about it
        return "unknown"
    return "bias" if _close(slope, changed) else "scale"


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(torch.maximum(a.abs().max(), b.abs().max())) + 1e-12
    return float((a - b).abs().max()) <= TOLERANCE * scale


def _elementwise(module: nn.Module, x: Tensor) -> bool:
    """Whether changing some elements of the input changes these elements of the output and no other."""
    before = probe(module, x)
    if before.shape != x.shape:
        return False
    chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device) < 0.5
    after = probe(module, torch.where(chosen, x + 1, x))
    rest = ~chosen
    return bool(torch.equal(before[rest], after[rest])) and not torch.equal(before[chosen], after[chosen])


def _affine(module: nn.Module, x: Tensor) -> bool:
    """Whether equal steps of the input, small and large and across zero, are equal steps of the output."""
    for step in (0.5, 1.0, 3.0):
        values = [probe(module, x + k * step) for k in (-1, 0, 1)]
        if not _close(values[1] - values[0], values[2] - values[1]):
            return False
    zero = torch.zeros_like(x)
    left, middle, right = (probe(module, zero + k) for k in (-1.0, 0.0, 1.0))
    return _close(middle - left, right - middle)
