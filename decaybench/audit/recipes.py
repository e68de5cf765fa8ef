"""Applies recipes to a model: which parameters other people's code decays."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import nn

from decaybench.errors import UsageError, unknown
from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.param_groups import decayed_names
from decaybench.registry.recipes import RECIPES, Recipe, Spares
from decaybench.registry.user_code import user_code


def decayed_by(recipe: Recipe, model: nn.Module, found: Mapping[str, Role]) -> set[str]:
    """Returns the names of the parameters that a recipe decays.

    Those without ``requires_grad`` are decayed by none: they have no gradient, so every optimizer skips them.

    Args:
        recipe: The recipe.
        model: Any module.
        found: The role of each of its parameters.
    """
    if recipe.spares is None:
        return decayed_names(model, found, unknown="decay")
    rule = recipe.spares
    modules = dict(model.named_modules())
    inside = [f"{name}." for name, module in modules.items() if name and _is_any(module, rule.within)]
    named = _no_weight_decay(model) if rule.no_weight_decay else []
    decayed = set()
    for name, parameter in model.named_parameters():
        prefix, _, own = name.rpartition(".")
        spared = (
            _by_name(rule, name, own)
            or parameter.ndim < rule.ndim_below
            or parameter.ndim == rule.ndim_is
            or _by_owner(rule, modules[prefix])
            or any(map(name.startswith, inside))
            or any(fnmatch(name, pattern) for pattern in named)
        )
        if parameter.requires_grad and not spared:
            decayed.add(name)
    return decayed


def _by_name(rule: Spares, name: str, own: str) -> bool:
    lower = name.lower()
    return (
        any(part in name for part in rule.contains)
        or any(part in lower for part in rule.contains_lower)
        or any(re.search(pattern, lower) for pattern in rule.matches)
        or name.endswith(rule.ends_with or ("\0",))
        or own in rule.own_names
    )


def _by_owner(rule: Spares, owner: nn.Module) -> bool:
    return (
        _is_any(owner, rule.owners)
        or type(owner).__name__ in rule.class_names
        or (rule.torch_norms and isinstance(owner, _TORCH_NORMS))
    )


_TORCH_NORMS = tuple(kind for name, kind in vars(nn).items() if "Norm" in name and isinstance(kind, type))


def _is_any(module: nn.Module, types: Iterable[str]) -> bool:
    """Tells whether a module is of one of these types, which are known by name and are not imported."""
    names = {f"{cls.__module__}.{cls.__name__}" for cls in type(module).__mro__}
    return any(wanted in names or _torch_name(wanted) in names for wanted in types)


def _torch_name(name: str) -> str:
    """Returns the name by which torch defines a class that it offers as ``torch.nn.…``."""
    kind = getattr(nn, name.removeprefix("torch.nn."), None)
    return f"{kind.__module__}.{kind.__name__}" if isinstance(kind, type) else name


def _no_weight_decay(model: nn.Module) -> list[str]:
    method = getattr(model, "no_weight_decay", None)
    if not callable(method):
        return []
    with user_code(f"no_weight_decay() of {type(model).__name__}"):
        return [str(name) for name in method()]


def read_rules(path: Path) -> dict[str, Recipe]:
    """Reads a table of somebody's own recipes, from a TOML file; no code is executed.

    The file has a table for each recipe, with the fields of `Spares` and, if wanted, a ``summary``.

    Raises:
        UsageError: When it cannot be read, with what is wrong in it.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--rules {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"--rules {path} is not valid TOML: {error}.") from error
    if not tables:
        raise UsageError(f'--rules {path} has no recipe; a table such as [mine] with contains = ["bias"] is one.')
    for name in tables:
        if name in RECIPES or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            why = "is a recipe of its own here" if name in RECIPES else "is no name"
            raise UsageError(f"--rules {path}: {name!r} {why}; allowed are other names of letters, digits and . _ -.")
    return {
        name: Recipe(str(_table(path, name, t).pop("summary", f"of {path}")), _spares(path, name, t))
        for name, t in tables.items()
    }


def _table(path: Path, name: str, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"--rules {path}: {name} is no table; a recipe is [{name}] with fields below it.")
    return dict(table)


def _spares(path: Path, name: str, table: Mapping[str, Any]) -> Spares:
    given = {key: value for key, value in table.items() if key != "summary"}
    defaults = {field.name: getattr(Spares(), field.name) for field in fields(Spares)}
    for key, value in given.items():
        if key not in defaults:
            raise unknown(f"field of [{name}] in {path}", key, defaults)
        default = defaults[key]
        texts = isinstance(default, tuple)
        if texts:
            ok = isinstance(value, list) and all(isinstance(v, str) for v in value)
        else:
            ok = type(value) is (bool if isinstance(default, bool) else int) and value >= 0
        if not ok:
            wanted = "a list of texts" if texts else "true or false" if isinstance(default, bool) else "a whole number"
            raise UsageError(f"--rules {path}: {name}.{key} = {value!r}; allowed is {wanted}.")
        given[key] = tuple(value) if texts else value
    for pattern in given.get("matches", ()):
        try:
            re.compile(pattern)
            if re.search(r"(?<!\\)[A-Z]", pattern):
                raise UsageError(
                    f"--rules {path}: {name}.matches: {pattern!r} has capitals; names are in lower case there."
                )
        except re.error as error:
            raise UsageError(
                f"--rules {path}: {name}.matches: {pattern!r} is no regular expression: {error}."
            ) from error
    for kind in (*given.get("owners", ()), *given.get("within", ())):
        if "." not in kind or (kind.startswith("torch.nn.") and kind.count(".") == 2 and not hasattr(nn, kind[9:])):
            raise UsageError(f"--rules {path}: {name}: there is no type {kind!r}; torch.nn.PReLU is one.")
    return Spares(**given)
