"""Hashes of values in canonical form."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> str:
    """Writes a value as JSON in canonical form: keys sorted, ASCII, no blanks.

    Raises:
        ValueError: For numbers that are not finite.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def digest(value: Any) -> str:
    """Hashes the canonical JSON of a value to 16 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def config_digest(config: Mapping[str, Any]) -> str:
    """Hashes the fields of a run's configuration; of a user's own code, 1 and 1.0 are one number."""
    return digest({key: _one_number(value) for key, value in config.items()})


def _one_number(value: Any) -> Any:
    if not isinstance(value, Mapping) or value.get("source") is None or "options" not in value:
        return value
    options = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in value["options"].items()}
    return {**value, "options": options}
