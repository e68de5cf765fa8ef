"""Reads the values of options that several commands share."""

import math
from collections.abc import Sequence
from typing import Any

from decaybench.errors import UsageError
from decaybench.registry.spec import plain_value

MOST_NUMBERS = 1_000_000_000
KINDS = ("int", "float", "bool")


def parse_input(text: str) -> tuple[str, tuple[int, ...], str]:
    """Reads one ``--input``: a shape such as ``1,3,224,224``, with a name before it and a type behind it, if wanted.

    Returns:
        Name, shape, type; name and type are empty where none is given.

    Raises:
        UsageError: When it is something else.
    """
    name, equals, rest = text.rpartition("=")
    shape, colon, kind = rest.partition(":")
    parts = shape.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--input {text!r} is no shape; allowed are whole numbers above 0, such as 1,3,224,224.")
    if (equals and not name.isidentifier()) or (colon and kind not in KINDS):
        raise UsageError(
            f"--input {text!r}: allowed are shapes such as image=2,3,32,32 and ids=2,16:int ({', '.join(KINDS)})."
        )
    sizes = tuple(int(part) for part in parts)
    if math.prod(sizes) > MOST_NUMBERS:
        raise UsageError(f"--input {text!r} has {math.prod(sizes):.3g} numbers; at most {MOST_NUMBERS:,} are drawn.")
    return name, sizes, kind


def parse_inputs(texts: Sequence[str]) -> list[tuple[str, tuple[int, ...], str]]:
    """Reads all ``--input``: the arguments of a model, all by position or all by name.

    Raises:
        UsageError: When they are mixed, or one is no shape.
    """
    found = [parse_input(text) for text in texts]
    if len({bool(name) for name, _, _ in found}) > 1:
        raise UsageError("--input: give all arguments by position, or all by name.")
    return found


def parse_pair(text: str, option: str = "--kwargs") -> tuple[str, Any]:
    """Reads one ``--kwargs key=value``.

    Args:
        text: The pair.
        option: The option, for the error.

    Raises:
        UsageError: When it is no pair.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"{option} {text!r} is not key=value.")
    return key, plain_value(value)
