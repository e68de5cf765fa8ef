"""Finds the optimizers in what people's functions return, and what their param groups do."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from decaybench.errors import UsageError
from decaybench.registry import imports
from decaybench.registry.user_code import user_code

# By which schedules multiply a group's decay: Megatron, fairseq; DINOv2; MMEngine and others.
MULTIPLIERS = ("wd_mult", "wd_multiplier", "decay_mult", "weight_decay_mult")
_WRAPPED = ("optimizer", "optimizers", "optim", "_optimizer", "inner_optimizer", "base_optimizer")
_DEEP = 6  # levels of containers and wrappers


class AnyOptimizer(Protocol):
    """Whatever has param groups, of torch or not."""

    param_groups: list[dict[str, Any]]


def optimizers_of(target: str, model: nn.Module) -> list[AnyOptimizer]:
    """Calls a user's function with the model and returns the optimizers that it makes.

    It may return an optimizer, several, a dict of them, a generator, param groups, a wrapper with one inside, or what
    Lightning's ``configure_optimizers`` returns.

    Raises:
        UsageError: When it fails, or returns nothing of the kind.
    """
    if ":" not in target:
        raise UsageError(
            f"{target!r} names no function; allowed are package.module:function and path/to/file.py:function."
        )
    factory = imports.load(target)
    if not callable(factory):
        raise UsageError(
            f"{target} is a {type(factory).__name__}; it must be a function from the model to its optimizer."
        )
    with user_code(f"{target}, called with the model,"):
        made = factory(model)
        found = list({id(one): one for one in _found(made, 0)}.values())
    if not found:
        raise UsageError(
            f"{target} returned {type(made).__name__}, in which there is no optimizer; it must return one or several, "
            "whatever they are in."
        )
    return found


def _found(value: Any, depth: int) -> Iterator[AnyOptimizer]:
    if depth > _DEEP or value is None or isinstance(value, str | bytes | int | float | torch.Tensor | LRScheduler):
        return
    if isinstance(value, Mapping) and "params" in value:
        value = [value]
    elif isinstance(value, ValuesView | Iterator):
        value = list(value)
    if isinstance(getattr(value, "param_groups", None), list | tuple):
        yield value
    elif _is_groups(value):
        yield ParamGroups([_group(number, group) for number, group in enumerate(value)])
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _found(one, depth + 1)
    elif isinstance(value, Iterable):
        for one in value:
            yield from _found(one, depth + 1)
    else:
        for name in _WRAPPED:
            inside = getattr(value, name, None)
            if inside is not None and not callable(inside):
                yield from _found(inside, depth + 1)
                return


class ParamGroups:
    """Param groups that were returned without an optimizer."""

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        self.param_groups = param_groups


def _is_groups(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(g, Mapping) and "params" in g for g in value)
    )


def _group(number: int, group: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a group as torch does: parameters may be one tensor, a generator, or pairs with their names."""
    if group.get("weight_decay") is None:
        raise UsageError(
            f"Group {number} has no weight_decay, so its optimizer's default counts: return the optimizer itself."
        )
    params = group["params"]
    listed = [params] if isinstance(params, torch.Tensor) else list(params)
    return {**group, "params": [p[1] if isinstance(p, tuple) else p for p in listed]}


def name_of(optimizer: AnyOptimizer) -> str:
    """Returns the class of an optimizer."""
    return "param groups" if isinstance(optimizer, ParamGroups) else type(optimizer).__name__


def decayed_groups(groups: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Tells of each group whether it decays its parameters, times what schedules multiply its decay by.

    Where every decay is 0 and groups have multipliers, a schedule sets the decay itself: the multipliers then decide. A
    group whose learning rate is 0 decays nothing, unless all are 0, which is the start of a warm-up.
    """
    own = [_number(group, "weight_decay") or 0.0 for group in groups]
    times = [math.prod(x for name in MULTIPLIERS if (x := _number(group, name)) is not None) for group in groups]
    if not any(own) and any(group.get(name) is not None for group in groups for name in MULTIPLIERS):
        own = [1.0] * len(groups)
    some_move = any(map(moves, groups))
    return [
        bool(decay * factor) and (moves(group) or not some_move)
        for group, decay, factor in zip(groups, own, times, strict=True)
    ]


def _number(group: Mapping[str, Any], key: str) -> float | None:
    value = group.get(key)
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"A param group has {key} = {value!r}, which is no number.") from error


def moves(group: Mapping[str, Any]) -> bool:
    """Tells whether the learning rate of a group is above 0, that of before any warm-up."""
    rate = _number(group, "initial_lr" if "initial_lr" in group else "lr")
    return rate is None or rate != 0


def remarks_on(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """Says what is special about param groups, a sentence each."""
    groups = list(groups)
    found = []
    if used := [name for name in MULTIPLIERS if any(group.get(name) is not None for group in groups)]:
        found.append(f"The decay of a group is taken times its {' and '.join(used)}, as a schedule applies it.")
    if used and not any(_number(group, "weight_decay") for group in groups):
        found.append("The decay of every group is 0, so that a schedule sets it: its multipliers alone decide here.")
    still = sum(not moves(group) for group in groups)
    if still and still < len(groups):
        found.append(f"{still} of {len(groups)} groups have a learning rate of 0: nothing in them moves, nor decays.")
    elif still:
        found.append("The learning rate of every group is 0, which is taken for the start of a warm-up.")
    return found
