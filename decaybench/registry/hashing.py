"""Hashes of values in canonical form."""

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """Hashes the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
