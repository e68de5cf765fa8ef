"""Moves the state of a saved optimizer into an optimizer whose parameters are grouped in another way."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from decaybench.errors import UsageError
from decaybench.parameter_roles.param_groups import clean

KEPT = ("params", "param_names", "weight_decay")  # options that the new groups decide


def regroup_state(state: Mapping[str, Any], optimizer: Optimizer, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Makes a state that an optimizer with other param groups can load, by the names of the parameters.

    ``optimizer.load_state_dict(regroup_state(saved, optimizer, names))`` resumes a training whose optimizer had one
    group with one that has the groups of `decaybench.param_groups`. Momentum and moments follow their parameter;
    ``weight_decay`` is that of the new groups, every other option, such as a scheduled learning rate, that of the saved
    ones where all parameters of a new group had the same.

    Args:
        state: What ``state_dict()`` of the saved optimizer returned.
        optimizer: The new one, whose groups have ``param_names``, as those of `decaybench.param_groups`.
        names: The names of the saved optimizer's parameters, in its order: for ``SGD(model.parameters(), …)`` those of
            ``model.named_parameters()``. Needed where its groups have no ``param_names``.

    Returns:
        A new state dict; the saved one stays as it is.

    Raises:
        UsageError: When names are missing, or a parameter of the new optimizer has none in the saved one.
    """
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
        raise UsageError("regroup_state: state is what optimizer.state_dict() returns, with state and param_groups.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("regroup_state: LBFGS keeps one state for all parameters together, which no group can take.")
    old_groups: list[Mapping[str, Any]] = list(state["param_groups"])
    old_names = _names_of(old_groups, names)
    old_index = {name: index for index, name in old_names.items()}
    group_of = {index: group for group in old_groups for index in group["params"]}
    new = optimizer.state_dict()
    moved: dict[int, Any] = {}
    groups = []
    for group, real in zip(new["param_groups"], optimizer.param_groups, strict=True):
        if "param_names" not in group:
            raise UsageError(
                "regroup_state: the new optimizer's groups have no param_names; make them with param_groups."
            )
        sources = []
        for index, name, parameter in zip(group["params"], group["param_names"], real["params"], strict=True):
            before = _index_of(name, old_index)
            sources.append(group_of[before])
            if before in state["state"]:
                moved[index] = _fitting(name, state["state"][before], parameter)
        groups.append({**group, **_common(sources)})
    return {**new, "state": moved, "param_groups": groups}


def _index_of(name: str, known: Mapping[str, int]) -> int:
    """Returns the number of a parameter in the saved optimizer, by its name, or by its name without wrappers."""
    if name in known:
        return known[name]
    same = [index for other, index in known.items() if clean(other) == clean(name)]
    if len(same) != 1:
        problem = "no parameter" if not same else "several parameters that could be"
        raise UsageError(f"regroup_state: the saved optimizer has {problem} {name}; it has {_some(known)}.")
    return same[0]


def _fitting(name: str, state: Mapping[str, Any], parameter: Tensor) -> Mapping[str, Any]:
    """Checks that the state of a parameter is of its shape; single numbers, such as a step, fit any."""
    for value in state.values():
        if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
            raise UsageError(
                f"regroup_state: the saved state of {name} has the shape {tuple(value.shape)}, the parameter "
                f"{tuple(parameter.shape)}; are names= in the order of the saved optimizer?"
            )
    return state


def _names_of(groups: list[Mapping[str, Any]], names: Iterable[str] | None) -> dict[int, str]:
    """Returns the name of each parameter of the saved optimizer, by its number."""
    indices = [index for group in groups for index in group["params"]]
    if all("param_names" in group for group in groups):
        listed = [name for group in groups for name in group["param_names"]]
    elif names is None:
        raise UsageError(
            "regroup_state: the saved optimizer's groups have no param_names, so give names=, in the order in which it "
            "got its parameters: [name for name, _ in model.named_parameters()], say."
        )
    else:
        listed = list(names)
    if not all(isinstance(name, str) for name in listed):
        raise UsageError("regroup_state: names= are texts: [name for name, _ in model.named_parameters()].")
    if len(listed) != len(indices):
        raise UsageError(
            f"regroup_state: the saved optimizer has {len(indices)} parameters, and {len(listed)} names were given."
        )
    if len(set(listed)) < len(listed):
        raise UsageError("regroup_state: a name occurs twice in names=.")
    return dict(zip(indices, listed, strict=True))


def _common(sources: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the options that all saved groups of a new group's parameters agree on, ``initial_lr`` among them."""
    options = {}
    for key in sources[0] if sources else ():
        values = [source[key] for source in sources if key in source]
        if key not in KEPT and len(values) == len(sources) and all(v == values[0] for v in values):
            options[key] = values[0]
    return options


def _some(names: Mapping[str, int]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (" …" if len(listed) > 3 else "")
