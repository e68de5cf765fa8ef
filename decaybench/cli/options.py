"""Reads the values of options that several commands share."""

from typing import Any

from decaybench.errors import UsageError
from decaybench.registry.spec import plain_value


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Reads ``--input``, the shape of one batch such as ``1,3,224,224``.

    Raises:
        UsageError: When it is no shape.
    """
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--input {text!r} is no shape; allowed are whole numbers above 0, such as 1,3,224,224.")
    return tuple(int(part) for part in parts)


def parse_pair(text: str) -> tuple[str, Any]:
    """Reads one ``--kwargs key=value``.

    Raises:
        UsageError: When it is no pair.
    """
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--kwargs {text!r} is not key=value.")
    return key, plain_value(value)
