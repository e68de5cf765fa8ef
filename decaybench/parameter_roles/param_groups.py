"""Param groups, and a penalty for the loss, that spare the activation parameters of any model."""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from decaybench.errors import UsageError
from decaybench.errors import unknown as no_such
from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.probe import Example
from decaybench.parameter_roles.roles import roles
from decaybench.registry.user_code import user_code

Unknown = Literal["raise", "decay", "exclude"]
ACTIVATION: tuple[Role, ...] = ("activation",)
# What torch.compile, DistributedDataParallel, FSDP1 and activation checkpointing put into the names of what they wrap.
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def param_groups(
    model: nn.Module,
    weight_decay: float,
    exclude: Collection[Role] = ACTIVATION,
    extra: Collection[str] = (),
    only: Collection[Role] | None = None,
    unknown: Unknown = "raise",
    example: Example | None = None,
) -> list[dict[str, Any]]:
    """Makes param groups for any `torch.optim` class, without weight decay for activation parameters.

    A parameter is left out of the decay when its role is excluded, when its name is matched by ``extra``, when
    it carries ``_no_weight_decay = True`` (Mamba's convention), or when a ``no_weight_decay()`` of the model or
    of a part of it names it (timm's). Options in a parameter's ``_optim`` (S4's) go into a group of their own.

    Args:
        model: Any module; only its trainable parameters are grouped.
        weight_decay: λ of the groups that are decayed.
        exclude: Roles that are not decayed.
        extra: Names or ``fnmatch`` patterns that are not decayed either.
        only: Roles that are decayed, and no others.
        unknown: What to do with parameters of unknown role: ``raise``, ``decay`` or ``exclude``.
        example: One batch of input, by which unknown roles are found out.

    Returns:
        Groups with ``params``, ``param_names`` and ``weight_decay``, in an order that depends on the model only.

    Raises:
        UsageError: When ``extra`` matches nothing, or roles are unknown and nothing was said about them.
    """
    decayed = decayed_names(model, roles(model, example), exclude, extra, only, unknown, example is not None)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in _trainable(model):
        options = {"weight_decay": weight_decay if name in decayed else 0.0, **getattr(parameter, "_optim", {})}
        key = repr(sorted(options.items()))
        group = groups.setdefault(key, {"params": [], "param_names": [], **options})
        group["params"].append(parameter)
        group["param_names"].append(name)
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad), "each exactly once"
    return list(groups.values())


def penalty(
    model: nn.Module,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    exclude: Collection[Role] = ACTIVATION,
    extra: Collection[str] = (),
    only: Collection[Role] | None = None,
    unknown: Unknown = "raise",
    example: Example | None = None,
) -> Tensor:
    """Computes the term to add to the loss: l1·‖w‖₁ + ½·l2·‖w‖², over what `param_groups` would decay.

    The ½ is here: the gradient of the second part is l2·w, so ``l2`` means what an optimizer's ``weight_decay``
    means. With an optimizer that couples decay and gradient (SGD, Adam) the two are the same; use one of them.

    Returns:
        A scalar.

    Raises:
        UsageError: As `param_groups`.
    """
    decayed = decayed_names(model, roles(model, example), exclude, extra, only, unknown, example is not None)
    chosen = [p for name, p in _trainable(model) if name in decayed]
    terms = [_whole(l1 * w.abs().sum() + 0.5 * l2 * w.abs().square().sum()) for w in chosen]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _whole(term: Tensor) -> Tensor:
    """Turns a sum over a sharded parameter (FSDP2's DTensor) into a plain tensor that can be added to a loss."""
    return term.full_tensor() if hasattr(term, "full_tensor") else term


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def clean(name: str) -> str:
    """Removes from a parameter's name what compilation and data parallelism put before it."""
    return _WRAPPERS.sub("", name)


def decayed_names(
    model: nn.Module,
    found: Mapping[str, Role],
    exclude: Collection[Role] = ACTIVATION,
    extra: Collection[str] = (),
    only: Collection[Role] | None = None,
    unknown: Unknown = "raise",
    ran: bool = False,
) -> set[str]:
    """Returns the names of the trainable parameters that `param_groups` decays, given their roles.

    Args:
        model: Any module.
        found: The role of each parameter.
        exclude: As in `param_groups`.
        extra: As in `param_groups`.
        only: As in `param_groups`.
        unknown: As in `param_groups`.
        ran: Whether the model was run on an example input to find them.
    """
    _check(exclude, only, unknown)
    trainable = dict(_trainable(model))
    spared = _matched(model, extra) | _named_by_the_model(model) | {n for n, p in trainable.items() if _marked(p)}
    lost = [name for name in trainable if found[name] == "unknown" and name not in spared]
    if flat := [name for name in lost if name.endswith("_flat_param")]:
        raise UsageError(
            f"{flat[0]} is the flat parameter of FSDP1, in which all are one: wrap with use_orig_params=True, "
            "or make the groups before it is wrapped."
        )
    if "unknown" in exclude:
        unknown = "exclude"
    if lost and unknown == "raise":
        raise UsageError(
            f"The role of {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''} is unknown: {_advice(ran)}, name them "
            "in extra, or say unknown='decay' or 'exclude'."
        )

    def wanted(role: Role) -> bool:
        if role == "unknown":
            return unknown == "decay"
        return role not in exclude if only is None else role in only

    return {name for name in trainable if wanted(found[name]) and name not in spared}


def _advice(ran: bool) -> str:
    if ran:
        return "running the model on example= did not show it, so mark them (decaybench.mark_activation(model, 'name'))"
    return "pass example= (one batch of input), mark them (decaybench.mark_activation(model, 'name'))"


def _marked(parameter: nn.Parameter) -> bool:
    """Tells whether a parameter is marked as not to be decayed, by Mamba's convention or S4's."""
    own = getattr(parameter, "_optim", None) or {}
    return bool(getattr(parameter, "_no_weight_decay", False)) or own.get("weight_decay") == 0


def _check(exclude: Collection[Role], only: Collection[Role] | None, unknown: Unknown) -> None:
    """Checks the names of roles, since a misspelt one would let a slope be decayed."""
    for given in (exclude, only or ()):
        if isinstance(given, str):
            raise UsageError(f"exclude and only take several roles, such as ('activation',), not {given!r}.")
        for role in given:
            if role not in get_args(Role):
                raise no_such("role", role, get_args(Role))
    if unknown not in get_args(Unknown):
        raise no_such("value of unknown=", unknown, get_args(Unknown))


def _first_names(model: nn.Module) -> dict[str, str]:
    """Maps every name of a trainable parameter, with and without wrappers, to the name it is listed under."""
    first = {id(p): name for name, p in _trainable(model)}
    every = [(name, first[id(p)]) for name, p in model.named_parameters(remove_duplicate=False) if id(p) in first]
    return {clean(name): listed for name, listed in every} | dict(every)


def _matched(model: nn.Module, patterns: Collection[str]) -> set[str]:
    names, matched = _first_names(model), set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {listed for name, listed in names.items() if fnmatch(name, pattern)}
        if not hits:
            example = next(iter(names), None)
            raise UsageError(
                f"extra={pattern!r} matches no trainable parameter; "
                + (f"a name is, for one, {example!r}." if example else "there is none.")
            )
        matched |= hits
    return matched


def _named_by_the_model(model: nn.Module) -> set[str]:
    """Returns the parameters that ``no_weight_decay()`` of the model or of a part of it names."""
    names, named = _first_names(model), set[str]()
    for prefix, module in model.named_modules():
        method = getattr(type(module), "no_weight_decay", None)
        if callable(method):
            with user_code(f"no_weight_decay() of {type(module).__name__}"):
                own = list(method(module))
            full = (clean(f"{prefix}.{name}" if prefix else str(name)) for name in own)
            named |= {names[name] for name in full if name in names}
    return named
