"""The answer to the thread for any model: param groups for its optimizer, or a penalty for its loss."""

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decaybench.errors import UsageError
from decaybench.known import Role
from decaybench.role import roles

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
    example: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Param groups for any `torch.optim` class: weight decay for what should have it, none for the rest.

    A parameter is left out of the decay when its role is excluded, when its name is matched by ``extra``, when
    it carries ``_no_weight_decay = True`` (Mamba's convention), or when a ``no_weight_decay()`` of the model or
    of a part of it names it (timm's). Options in a parameter's ``_optim`` (S4's) go into a group of their own.

    Args:
        model: Any module; only its trainable parameters are grouped.
        weight_decay: For the groups that are decayed.
        exclude: Roles that are not decayed.
        extra: Names or ``fnmatch`` patterns that are not decayed either.
        only: Decay these roles and no other.
        unknown: What to do with parameters of unknown role: ``raise``, ``decay`` or ``exclude``.
        example: One batch of input, by which unknown roles are found out.

    Returns:
        Groups with ``params``, ``param_names`` and ``weight_decay``, in an order that depends on the model only.

    Raises:
        UsageError: When ``extra`` matches nothing, or roles are unknown and nothing was said about them.
    """
    decayed = decayed_names(model, roles(model, example), exclude, extra, only, unknown)
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
    example: Tensor | None = None,
) -> Tensor:
    """The term to add to the loss: l1·‖w‖₁ + ½·l2·‖w‖², over the parameters that `param_groups` would decay.

    The ½ is here: the gradient of the second part is l2·w, so ``l2`` means what an optimizer's ``weight_decay``
    means. With an optimizer that couples decay and gradient (SGD, Adam) the two are the same; use one of them.

    Returns:
        A scalar.

    Raises:
        UsageError: As `param_groups`.
    """
    decayed = decayed_names(model, roles(model, example), exclude, extra, only, unknown)
    chosen = [p for name, p in _trainable(model) if name in decayed]
    terms = [_whole(l1 * w.abs().sum() + 0.5 * l2 * w.square().sum()) for w in chosen]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _whole(term: Tensor) -> Tensor:
    """A sum over a sharded parameter (FSDP2's DTensor) as a plain tensor that can be added to a loss."""
    return term.full_tensor() if hasattr(term, "full_tensor") else term


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def clean(name: str) -> str:
    """A parameter's name without what compilation and data parallelism put before it."""
    return _WRAPPERS.sub("", name)


def decayed_names(
    model: nn.Module,
    found: Mapping[str, Role],
    exclude: Collection[Role] = ACTIVATION,
    extra: Collection[str] = (),
    only: Collection[Role] | None = None,
    unknown: Unknown = "raise",
) -> set[str]:
    """The names of the trainable parameters that `param_groups` decays, given their roles."""
    trainable = dict(_trainable(model))
    lost = [name for name in trainable if found[name] == "unknown" and name not in _matched(trainable, extra)]
    if lost and unknown == "raise":
        raise UsageError(
            f"The role of {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''} is unknown: pass example= (one batch of "
            "input), mark the module with decaybench.mark_activation, name them in extra, or say unknown='decay' "
            "or 'exclude'."
        )
    spared = _matched(trainable, extra) | _named_by_the_model(model)

    def wanted(role: Role) -> bool:
        if role == "unknown":
            return unknown == "decay"
        return role not in exclude if only is None else role in only

    return {
        name
        for name, parameter in trainable.items()
        if wanted(found[name]) and name not in spared and not getattr(parameter, "_no_weight_decay", False)
    }


def _matched(names: Iterable[str], patterns: Collection[str]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatch(clean(name), pattern) or fnmatch(name, pattern)}
        if not hits:
            raise UsageError(
                f"extra={pattern!r} matches no trainable parameter; a name is, for one, {next(iter(names))!r}."
            )
        matched |= hits
    return matched


def _named_by_the_model(model: nn.Module) -> set[str]:
    """What ``no_weight_decay()`` of the model or of any part of it returns, as full names."""
    named: set[str] = set()
    for prefix, module in model.named_modules():
        method = getattr(type(module), "no_weight_decay", None)
        if callable(method):
            named |= {f"{prefix}.{name}" if prefix else name for name in method(module)}
    return named
