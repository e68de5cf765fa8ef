"""Builds what a Spec names: an entry of the registry, or a user's own ``package.module:factory``."""

import inspect
from typing import Any

from decaybench import registry
from decaybench.errors import DecaybenchError, UsageError
from decaybench.registry import imports
from decaybench.registry.spec import Spec


def construct(family: str, spec: Spec, *args: Any) -> Any:
    """Imports what ``spec`` names and calls it with ``args`` and its options as keywords.

    Raises:
        UsageError: When a user's own code does not import or does not take these arguments, or anything
            cannot be built, with the reason.
    """
    own = imports.is_target(spec.name)
    function = imports.load(spec.name if own else registry.FAMILIES[family][spec.name].target)
    if own:
        _check_call(function, family, spec, args)
    try:
        return function(*args, **spec.options)
    except DecaybenchError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"The {family} {spec.label} fails: {type(error).__name__}: {reason}.") from error


def _check_call(function: Any, family: str, spec: Spec, args: tuple[Any, ...]) -> None:
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
