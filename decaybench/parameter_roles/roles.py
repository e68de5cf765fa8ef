"""Decides the role of each parameter: the one definition of "activation parameter".

A role is decided by marks, then by the type of the module that owns the parameter, then, with an example input, by what
the model does with it; never by its rank, and never by a piece of its name.
"""

import re
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils.parametrize import ParametrizationList

from decaybench.errors import UsageError
from decaybench.parameter_roles.inference import observe, role_by_behaviour, role_by_running
from decaybench.parameter_roles.library_rules import Role, known_role
from decaybench.parameter_roles.probe import Example

T = TypeVar("T")

_MARK, _NAMES = "_decaybench_role", "_decaybench_activation_names"
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# In torch's own layers, and only there, the name of a parameter is a documented part of the type.
_OWN = re.compile(
    r"(in_proj_|[qkv]_proj_)?(weight|bias)(_[gvk]|_orig|_(ih|hh|hr)(_l\d+)?(_reverse)?)?",  # also of torch.nn.utils
)
_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def mark_activation(thing: T, *names: str) -> T:
    """Marks a module (class or instance), parameters of a module, or a parameter as an activation function's.

    Use it as a decorator on your own module; every strategy then treats its parameters as it treats a PReLU's slopes.
    ``mark_activation(block, "slope")`` marks one parameter of a module. These marks are kept by the module, through
    ``copy.deepcopy``, ``AveragedModel``, ``load_state_dict(assign=True)``, ``to_empty`` and ``fully_shard``; so is that
    of a parameter which is marked before a module gets it, ``self.slope = mark_activation(nn.Parameter(...))``. A mark
    on a parameter that is in a module already lasts as long as that object.

    Args:
        thing: A module, its class, or a parameter.
        names: Names of parameters in the module, as ``named_parameters()`` has them.

    Returns:
        The same thing.

    Raises:
        UsageError: When the module has no parameter of such a name.
    """
    if not names:
        if isinstance(thing, nn.Parameter):
            _keep_names()
        elif not isinstance(thing, nn.Module | type):
            raise UsageError(f"mark_activation takes a module, its class or a parameter, not {type(thing).__name__}.")
        setattr(thing, _MARK, "activation")
        return thing
    if not isinstance(thing, nn.Module):
        raise UsageError("mark_activation takes names of parameters with a module only.")
    for name in names:
        prefix, _, own = name.rpartition(".")
        modules = dict(thing.named_modules())
        if prefix not in modules or own not in modules[prefix]._parameters:
            raise UsageError(f"mark_activation: {type(thing).__name__} has no parameter {name!r}.")
        _add_name(modules[prefix], own)
    return thing


def _add_name(module: nn.Module, name: str) -> None:
    setattr(module, _NAMES, {*getattr(module, _NAMES, ()), name})


def _keep_names() -> None:
    """Makes modules remember the names of marked parameters that they get."""
    if not _hooked:
        _hooked.append(register_module_parameter_registration_hook(_remember))


def _remember(module: nn.Module, name: str, parameter: Any) -> None:
    if hasattr(parameter, _MARK):
        _add_name(module, name)


_hooked: list[Any] = []


def _is_marked(owners: dict[str, nn.Module], full_name: str, parameter: nn.Parameter) -> bool:
    prefix, _, own = full_name.rpartition(".")
    return hasattr(parameter, _MARK) or own in getattr(owners.get(prefix), _NAMES, ())


def _role(owner: nn.Module, name: str) -> Role:
    found = known_role(type(owner), name)
    if found == "activation":  # also where the class is derived from a layer of torch's
        return found
    if _OWN.fullmatch(name):  # a subclass may learn more than torch's class does
        if isinstance(owner, _NORMS):
            return "norm"
        if isinstance(owner, _EMBEDDINGS):
            return "embedding"
        if isinstance(owner, _LAYERS):
            return "bias" if "bias" in name else "weight"
    return found


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


def roles(model: nn.Module, example: Example | None = None) -> dict[str, Role]:
    """Returns the role of every parameter, by its name; a shared one is listed once, under its first name.

    Args:
        model: Any module, also on the meta device, compiled, or wrapped for data parallelism.
        example: One batch of input: a tensor, a tuple of arguments, or a mapping of arguments by name. Parameters whose
            module is of an unknown type are then classified by what the model does with them (see
            `decaybench.parameter_roles.use`); without it they are ``unknown``.

    Raises:
        UsageError: When the model does not take the example.
    """
    found, unknown = _by_type(model)
    if example is not None and unknown:
        observed = observe(model, example, set(unknown.values()))
        parameters = dict(model.named_parameters())
        for name, owner in unknown.items():
            found[name] = role_by_running(owner, parameters[name], name, observed)
    return found


def _by_type(model: nn.Module) -> tuple[dict[str, Role], dict[str, nn.Module]]:
    """Returns the role of every parameter by marks and types, and the owners of those whose role is unknown."""
    activation = {id(p) for layer in activation_layers(model).values() for p in layer.parameters()}
    owners = dict(model.named_modules(remove_duplicate=False))
    candidates: dict[int, list[Role]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, own = owner_of(owners, name)
        settled = id(parameter) in activation or _is_marked(owners, name, parameter)
        candidates.setdefault(id(parameter), []).append("activation" if settled else _role(owner, own))
    found = {name: min(candidates[id(p)], key=_precedence) for name, p in model.named_parameters()}
    return found, {name: owner_of(owners, name)[0] for name, role in found.items() if role == "unknown"}


def mark_by_behaviour(model: nn.Module, example: Example) -> None:
    """Marks what turns out to be an activation's, of modules of unknown type, when the model sees an example input.

    A module that is one element-wise function is marked as a whole, otherwise the parameter.
    """
    _, unknown = _by_type(model)
    if not unknown:
        return
    observed = observe(model, example, set(unknown.values()))
    parameters = dict(model.named_parameters())
    for name, owner in unknown.items():
        if role_by_running(owner, parameters[name], name, observed) != "activation":
            continue
        if role_by_behaviour(owner, parameters[name], observed.calls.get(owner)) == "activation":
            mark_activation(owner)
        else:
            mark_activation(model, name)


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
    parts = full_name.split(".")
    for i in range(len(parts) - 1, 0, -1):  # …linear.parametrizations.weight.original0, or the module's own …0.A
        if isinstance(owners.get(".".join(parts[:i])), ParametrizationList):
            prefix, name = ".".join(parts[: i - 2]), parts[i - 1]
    while prefix and isinstance(
        owners[prefix], nn.ParameterList | nn.ParameterDict
    ):  # a box, not a module that does anything
        prefix, _, box = prefix.rpartition(".")
        name = f"{box}.{name}"
    return owners[prefix], name
