"""Builds what a Spec names: an entry of the registry, or a user's own ``package.module:factory``."""

import inspect
from typing import Any

from decaybench import registry
from decaybench.errors import UsageError
from decaybench.registry import imports
from decaybench.registry.spec import Spec
from decaybench.registry.user_code import user_code


def construct(family: str, spec: Spec, *args: Any) -> Any:
    """Imports what ``spec`` names and calls it with ``args`` and its options as keywords.

    Raises:
        UsageError: When a user's own code does not import or does not take these arguments, or anything
            cannot be built, with the reason.
    """
    own = imports.is_target(spec.name)
    function = imports.load(spec.name if own else registry.FAMILIES[family][spec.name].target)
    options = _checked_options(function, family, spec, args) if own else spec.options
    with user_code(f"The {family} {spec.label}"):
        return function(*args, **options)


def _checked_options(function: Any, family: str, spec: Spec, args: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the options as the parameters of a user's own function want them: 1 is 1.0 where a float is expected."""
    if not callable(function):
        raise UsageError(f"The {family} {spec.name} is a {type(function).__name__}, which cannot be called.")
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **spec.options)
    except TypeError as error:
        raise UsageError(
            f"The {family} {spec.name} takes {signature}; it was given {len(args)} positional arguments "
            f"and the options {spec.options}: {error}."
        ) from error
    return {key: _as_declared(value, signature.parameters.get(key)) for key, value in spec.options.items()}


def _as_declared(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Converts a whole number to the type that a parameter's default or annotation has."""
    if parameter is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    kinds = (parameter.annotation, type(parameter.default))
    if any(kind in (float, "float") for kind in kinds):
        return float(value)
    if any(kind in (int, "int") for kind in kinds) and float(value).is_integer():
        return int(value)
    return value
