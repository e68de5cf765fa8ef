"""Decides the role of each parameter: the one definition of "activation parameter".

A role is decided by the type of the module that owns the parameter, never by its rank and never by a
substring of its name.
"""

import re
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from decaybench.parameter_roles.inference import captured_calls, role_by_behaviour
from decaybench.parameter_roles.library_rules import Role, known_role

T = TypeVar("T")

_MARK = "_decaybench_role"
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# In torch's own layers, and only there, the name of a parameter is a documented part of the type.
_OWN = re.compile(r"(in_proj_|[qkv]_proj_)?(weight|bias)\w*")
_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def mark_activation(thing: T) -> T:
    """Marks a module (class or instance) or a parameter as an activation function's.

    Use it as a decorator on your own module; every strategy then treats its parameters as it treats a
    PReLU's slopes. A mark on one parameter lasts as long as that parameter object: a copy of it, or what
    FSDP2's ``fully_shard`` puts in its place, loses the mark; a marked module keeps it.

    Returns:
        The same thing.
    """
    setattr(thing, _MARK, "activation")
    return thing


def _role(owner: nn.Module, name: str, parameter: nn.Parameter) -> Role:
    if hasattr(parameter, _MARK):
        return "activation"
    if _OWN.fullmatch(name):  # a subclass may learn more than torch's class does
        if isinstance(owner, _NORMS):
            return "norm"
        if isinstance(owner, _EMBEDDINGS):
            return "embedding"
        if isinstance(owner, _LAYERS):
            return "bias" if "bias" in name else "weight"
    return known_role(type(owner), name)


def _all_activation(module: nn.Module) -> bool:
    """Tells whether everything a module itself owns is known to be an activation's."""
    own = [name for name, _ in module.named_parameters(recurse=False)]
    return bool(own) and all(known_role(type(module), name) == "activation" for name in own)


def activation_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the activation modules that learn something, by name, in the order of the model.

    Everything inside such a module is part of the activation: only the outermost one is listed.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or outer == "" for outer in layers)
        is_activation = isinstance(module, nn.PReLU) or hasattr(module, _MARK) or _all_activation(module)
        if is_activation and not inside and list(module.parameters()):
            layers[name] = module
    return layers


def roles(model: nn.Module, example: Tensor | None = None) -> dict[str, Role]:
    """Returns the role of every parameter, by its name; a shared one is listed once, under its first name.

    Args:
        model: Any module, also on the meta device, compiled, or wrapped for data parallelism.
        example: One batch of input. Parameters whose module is of an unknown type are then classified by
            what the module does to it (see `decaybench.parameter_roles.inference`); without it they are ``unknown``.
    """
    activation = {id(p) for layer in activation_layers(model).values() for p in layer.parameters()}
    owners = dict(model.named_modules(remove_duplicate=False))
    candidates: dict[int, list[Role]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, own = owner_of(owners, name)
        role = "activation" if id(parameter) in activation else _role(owner, own, parameter)
        candidates.setdefault(id(parameter), []).append(role)
    found = {name: min(candidates[id(p)], key=_precedence) for name, p in model.named_parameters()}
    unknown = {name: owner_of(owners, name)[0] for name, role in found.items() if role == "unknown"}
    if example is not None and unknown:
        calls = captured_calls(model, set(unknown.values()), example)
        parameters = dict(model.named_parameters())
        for name, owner in unknown.items():
            found[name] = role_by_behaviour(owner, parameters[name], calls.get(owner))
    return found


def mark_by_behaviour(model: nn.Module, example: Tensor) -> None:
    """Marks the modules of unknown type that turn out to be activations when the model sees an example input."""
    owners = dict(model.named_modules())
    before, after = roles(model), roles(model, example)
    for name in before:
        if before[name] == "unknown" and after[name] == "activation":
            mark_activation(owner_of(owners, name)[0])


def _precedence(role: Role) -> int:
    """Orders the roles of a parameter with several owners: activation first, unknown last."""
    return {"activation": 0, "embedding": 1, "unknown": 3}.get(role, 2)


def owner_of(owners: dict[str, nn.Module], full_name: str) -> tuple[nn.Module, str]:
    """Finds the module that owns a parameter and its name there; a parametrization belongs to what it parametrizes.

    Args:
        owners: ``dict(model.named_modules())``.
        full_name: The parameter's name in ``model.named_parameters()``.
    """
    prefix, _, name = full_name.rpartition(".")
    if isinstance(owners[prefix], ParametrizationList):  # …linear.parametrizations.weight.original0
        prefix, _, name = prefix.rpartition(".")
        prefix = prefix.removesuffix("parametrizations").removesuffix(".")
    while prefix and isinstance(
        owners[prefix], nn.ParameterList | nn.ParameterDict
    ):  # a box, not a module that does anything
        prefix, _, box = prefix.rpartition(".")
        name = f"{box}.{name}"
    return owners[prefix], name
