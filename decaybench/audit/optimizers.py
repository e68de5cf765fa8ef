"""Finds the optimizers in what people's functions return, and what their param groups do."""

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from decaybench.errors import UsageError
from decaybench.registry import imports
from decaybench.registry.user_code import user_code

# By which schedules multiply a group's decay: Megatron, fairseq; DINOv2; MMEngine and others.
MULTIPLIERS = ("wd_mult", "wd_multiplier", "decay_mult", "weight_decay_mult")
_WRAPPED = ("optimizer", "optimizers", "optim", "_optimizer", "inner_optimizer")
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
    if isinstance(getattr(value, "param_groups", None), list):
        yield value
    elif _is_groups(value):
        yield SimpleNamespace(param_groups=list(value))
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


def _is_groups(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(g, dict) and "params" in g for g in value)


def name_of(optimizer: AnyOptimizer) -> str:
    """Returns the class of an optimizer."""
    return "param groups" if isinstance(optimizer, SimpleNamespace) else type(optimizer).__name__


def pull(group: Mapping[str, Any]) -> float:
    """Returns the weight decay of a param group as a plain number, with what schedules multiply it by."""
    value = group.get("weight_decay")
    decay = 0.0 if value is None else float(value)
    for name in MULTIPLIERS:
        if group.get(name) is not None:
            decay *= float(group[name])
    return decay


def moves(group: Mapping[str, Any]) -> bool:
    """Tells whether the learning rate of a group is above 0, that of before any warm-up."""
    rate = group.get("initial_lr", group.get("lr"))
    return rate is None or float(rate) != 0


def remarks_on(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """Says what is special about param groups, a sentence each."""
    groups = list(groups)
    found = []
    if used := [name for name in MULTIPLIERS if any(group.get(name) is not None for group in groups)]:
        found.append(f"The decay of a group is taken times its {' and '.join(used)}, as a schedule applies it.")
    still = sum(not moves(group) for group in groups)
    if still and still < len(groups):
        found.append(f"{still} of {len(groups)} groups have a learning rate of 0: nothing in them moves, nor decays.")
    elif still:
        found.append("The learning rate of every group is 0, which is taken for the start of a warm-up.")
    return found
