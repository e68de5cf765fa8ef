"""Infers roles by running the model once: what its modules do by themselves, and what uses each parameter."""

import copy
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.probe import Example, called, copied, probe, run_once, tensors
from decaybench.parameter_roles.trace import Node, Trace
from decaybench.parameter_roles.use import quantizes, role_by_use
from decaybench.registry.user_code import user_code

AFFINE_TOLERANCE = 1e-7  # of the output's size: far above float64's rounding, far below any nonlinearity
MASKS = 6  # of places that are changed, to see that no other output changes
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


@dataclass(frozen=True)
class Observed:
    """What was seen while a model ran on an example input.

    Attributes:
        calls: The first call of each module that was watched.
        by_use: The role of each parameter by the operations that took it.
        rounded: The parameters whose products with data are rounded.
    """

    calls: dict[nn.Module, Call] = field(default_factory=dict)
    by_use: dict[str, Role] = field(default_factory=dict)
    rounded: frozenset[str] = frozenset()


def observe(model: nn.Module, example: Example, owners: Iterable[nn.Module] = ()) -> Observed:
    """Runs a model on an example input: in evaluation mode, and once more in training where that leaves a question.

    Args:
        model: Any module; it stays as it was.
        example: One batch of input: a tensor, several by position, or a mapping by name.
        owners: The modules whose first call is to be captured.

    Raises:
        UsageError: When the model does not take this input, with its own error.
    """
    seen: dict[nn.Module, Call] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(module, Call(copied(args), copied(kwargs)))

    args, kwargs = called(example)
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        with user_code(f"The model, given an example input of {_shapes(example)},"), torch.no_grad():
            model(*copied(args), **copied(kwargs))  # lazy layers get their shapes
    named = dict(model.named_parameters())
    plain = [owner for owner in owners if not isinstance(owner, torch.jit.ScriptModule)]
    handles = [owner.register_forward_pre_hook(hook, with_kwargs=True) for owner in plain]
    try:
        with user_code(f"The model, given an example input of {_shapes(example)},"):
            nodes = _traced(model, named, example, training=False)
    finally:
        for handle in handles:
            handle.remove()
    roles = {name: role_by_use(node) for name, node in nodes.items()}
    if plain and set(roles.values()) & {"scale", "bias", "unknown"}:
        with suppress(Exception):  # a batch norm with one example, say
            roles |= _in_training(roles, _traced(model, named, example, training=True))
    maybe = (name for name, role in roles.items() if role in ("scale", "bias"))
    return Observed(seen, roles, frozenset(name for name in maybe if quantizes(nodes[name])))


def _traced(model: nn.Module, named: Mapping[str, nn.Parameter], example: Example, training: bool) -> dict[str, Node]:
    """Runs a model once and returns the node of each parameter."""
    args, kwargs = called(example)
    args, kwargs = copied(args), copied(kwargs)
    trace = Trace(named, (args, kwargs))
    with trace:
        run_once(model, args, kwargs, training)
    return {name: trace.of_parameter[i] for i, name in enumerate(named)}


def _in_training(roles: Mapping[str, Role], nodes: Mapping[str, Node]) -> dict[str, Role]:
    """Returns the roles that only training shows: of norms with running statistics, and of what was not used before."""
    found: dict[str, Role] = {}
    for name, role in roles.items():
        if role in ("scale", "bias", "unknown"):
            there = role_by_use(nodes[name])
            if there == "norm" or (role == "unknown" and there != "unknown"):
                found[name] = there
    return found


def _shapes(example: Example) -> str:
    """Writes the shapes of an example input, for an error."""
    args, kwargs = called(example)
    texts = [str(tuple(x.shape)) if isinstance(x, Tensor) else repr(x) for x in args]
    return ", ".join(texts + [f"{k} {tuple(x.shape) if isinstance(x, Tensor) else x!r}" for k, x in kwargs.items()])


def role_by_running(module: nn.Module, parameter: nn.Parameter, name: str, observed: Observed) -> Role:
    """Classifies a parameter by what its module does, where it is element-wise and nonlinear, or else by its use.

    Args:
        module: The module that owns the parameter.
        parameter: One of the module's parameters.
        name: Its name in the model.
        observed: What was seen while the model ran.

    Returns:
        ``unknown`` where nothing took the parameter, or nothing whose work is known.
    """
    by_use = observed.by_use.get(name, "unknown")
    if name in observed.rounded:
        return by_use
    by_behaviour = role_by_behaviour(module, parameter, observed.calls.get(module))
    if by_behaviour == "activation" or by_use == "unknown":
        return by_behaviour
    return by_use


def role_by_behaviour(module: nn.Module, parameter: nn.Parameter, call: Call | None) -> Role:
    """Classifies a parameter of a module that is element-wise around the input it really gets.

    A nonlinear one's is ``activation``, but ``bias`` where moving the parameter is moving the input; an affine one's is
    ``scale`` where it changes the slope and ``bias`` where it only shifts. The parameter is moved before it is looked
    at: a slope that starts at 1 or a gain that starts at 0 hides what it does.

    Args:
        module: The module that owns the parameter.
        parameter: One of the module's parameters.
        call: How the model called the module; None where it never did.

    Returns:
        ``unknown`` for a module that is not element-wise, or cannot be called by itself.
    """
    if call is None or call.x is None or call.x.is_meta or _has_parts(module):
        return "unknown"
    names = [name for name, p in module.named_parameters() if p is parameter]
    try:
        twin, x = copy.deepcopy(module).double(), call.x.double()
        moved = dict(twin.named_parameters())[names[0]]
        slopes = []
        draw = torch.Generator().manual_seed(0)
        for _ in range(2):
            moved.data += (0.5 + torch.rand(moved.shape, generator=draw, dtype=torch.float64)).to(moved.device)
            if not _elementwise(twin, call, x):
                return "unknown"
            if not _affine(twin, call, x):
                return "bias" if _moves_the_input(twin, call, x, moved) else "activation"
            slopes.append(call.again(twin, x + 1) - call.again(twin, x))
    except Exception:  # it cannot be called by itself, so nothing is known about it
        return "unknown"
    return "bias" if _close(*slopes) else "scale"


def _has_parts(module: nn.Module) -> bool:
    """Tells whether a module has parts that learn something of their own: it is then no activation as a whole."""
    boxes = (nn.ParameterList, nn.ParameterDict)
    return any(
        list(m.parameters(recurse=False)) for m in module.modules() if m is not module and not isinstance(m, boxes)
    )


def _elementwise(module: nn.Module, call: Call, x: Tensor) -> bool:
    """Tells whether each output depends on the input at the same place, and on no other."""
    before = call.again(module, x)
    if not isinstance(before, Tensor) or before.shape != x.shape:
        return False
    draw, moved = torch.Generator().manual_seed(0), False
    for _ in range(MASKS):
        chosen = torch.rand(x.shape, generator=draw).to(x.device) < 0.5
        noise = 3 * torch.randn(x.shape, generator=draw, dtype=x.dtype).to(x.device)
        after = call.again(module, torch.where(chosen, noise, x))
        if not torch.equal(before[~chosen], after[~chosen]):
            return False
        moved |= not torch.equal(before, after)
    return moved


def _moves_the_input(module: nn.Module, call: Call, x: Tensor, parameter: Tensor) -> bool:
    """Tells whether adding to a parameter is adding to the input, or taking from it: it is then a bias in front."""
    same = {1: True, -1: True}
    for step in (0.3, -1.7):
        parameter.data += step
        after = call.again(module, x)
        parameter.data -= step
        for sign in same:
            same[sign] &= _close(after, call.again(module, x + sign * step))
    return any(same.values())


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
