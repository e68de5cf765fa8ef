"""Infers the role of a parameter by running a copy of its module in float64."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.probe import copied, probe, tensors
from decaybench.registry.user_code import user_code

AFFINE_TOLERANCE = 1e-7  # of the output's size: far above float64's rounding, far below any nonlinearity
AFFINE_STEPS = (0.5, 1.0, 3.0, 30.0)


@dataclass(frozen=True)
class Call:
    """The arguments of a call of a module, to call it again with another input."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def x(self) -> Tensor | None:
        """The first floating-point tensor; None where there is none."""
        return next((t for t in tensors(self.args, self.kwargs) if t.is_floating_point()), None)

    def again(self, module: nn.Module, x: Tensor) -> Any:
        """Calls a module with ``x`` in its place, and every other tensor of numbers in the type of ``x``."""
        first = self.x

        def put(value: Any) -> Any:
            if value is first:
                return x
            return value.to(x.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return probe(module, *map(put, self.args), **{k: put(v) for k, v in self.kwargs.items()})


def captured_calls(model: nn.Module, owners: Iterable[nn.Module], example: Tensor) -> dict[nn.Module, Call]:
    """Captures the first call of each of these modules when the model sees an example input.

    Raises:
        UsageError: When the model does not take this input, with its own error.
    """
    seen: dict[nn.Module, Call] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(module, Call(copied(args), copied(kwargs)))

    handles = [owner.register_forward_pre_hook(hook, with_kwargs=True) for owner in owners]
    try:
        with user_code(f"The model, given an example input of {tuple(example.shape)},"):
            probe(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def role_by_behaviour(module: nn.Module, parameter: nn.Parameter, call: Call | None) -> Role:
    """Classifies a parameter by what its module does around the input it really gets.

    Element-wise and nonlinear is ``activation``; element-wise and affine is ``scale`` where the parameter
    changes the slope and ``bias`` where it only shifts; everything else is ``weight``. The parameter is
    moved before it is looked at: a slope that starts at 1 or a gain that starts at 0 hides what it does.

    Args:
        module: The module that owns the parameter.
        parameter: One of the module's parameters.
        call: How the model called the module; None where it never did: the role is then ``unknown``.
    """
    if call is None:
        return "unknown"
    if call.x is None:
        return "weight"
    names = [name for name, p in module.named_parameters() if p is parameter]
    try:
        twin, x = copy.deepcopy(module).double(), call.x.double()
        moved = dict(twin.named_parameters())[names[0]]
        slopes = []
        draw = torch.Generator().manual_seed(0)
        for _ in range(2):
            moved.data += (0.5 + torch.rand(moved.shape, generator=draw, dtype=torch.float64)).to(moved.device)
            found = _kind(twin, call, x)
            if found != "affine":
                return found
            slopes.append(call.again(twin, x + 1) - call.again(twin, x))
    except Exception:  # it cannot be called by itself, so nothing is known about it
        return "unknown"
    return "bias" if _close(*slopes) else "scale"


def _kind(module: nn.Module, call: Call, x: Tensor) -> Literal["affine", "activation", "weight"]:
    """Returns ``affine`` for an element-wise affine module, otherwise the role that follows."""
    before = call.again(module, x)
    if not isinstance(before, Tensor) or before.shape != x.shape:
        return "weight"
    chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device) < 0.5
    after = call.again(module, torch.where(chosen, x + 1, x))
    if not torch.equal(before[~chosen], after[~chosen]) or torch.equal(before, after):
        return "weight"
    return "affine" if _affine(module, call, x) else "activation"


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(torch.maximum(a.abs().max(), b.abs().max())) + 1e-12
    return float((a - b).abs().max()) <= AFFINE_TOLERANCE * scale


def _affine(module: nn.Module, call: Call, x: Tensor) -> bool:
    """Tells whether equal steps of the input, small and large and across zero, are equal steps of the output."""
    for start in (x, torch.zeros_like(x)):
        for step in AFFINE_STEPS:
            left, middle, right = (call.again(module, start + k * step) for k in (-1, 0, 1))
            if not _close(middle - left, right - middle):
                return False
    return True
