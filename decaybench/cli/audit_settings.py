"""Reads the table [tool.decaybench.audit] of a pyproject.toml."""

import tomllib
from pathlib import Path
from typing import Any

from decaybench.errors import UsageError, unknown

LISTS, TEXTS = ("targets", "input", "recipe"), ("optimizer", "fail-on", "rules", "format")
ALLOWED = (*LISTS, *TEXTS, "kwargs", "allow-unknown")


def from_pyproject(path: Path) -> dict[str, Any]:
    """Reads the options of ``decaybench audit``, under their names on the command line.

    Raises:
        UsageError: When there is no such table, or something in it cannot be.
    """
    try:
        whole = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"No target is given, and there is no {path}; a target is package.module:factory, say."
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    table: Any = whole
    for key in ("tool", "decaybench", "audit"):
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict) or not table.get("targets"):
        raise UsageError(f"No target is given, and {path} has no targets in [tool.decaybench.audit].")
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in ALLOWED:
            raise unknown(f"field of [tool.decaybench.audit] in {path}", key, ALLOWED)
        found[key.replace("-", "_")] = _checked(path, key, value)
    if not found.get("recipe") and not found.get("optimizer"):
        raise UsageError(f"{path}: [tool.decaybench.audit] needs the recipe, or the optimizer, that you use.")
    return {"fail_on": "activation", **found}


def _checked(path: Path, key: str, value: Any) -> Any:
    if key in LISTS:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return value
        wanted = "a text or a list of texts"
    elif key == "kwargs":
        if isinstance(value, dict):
            return [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in value.items()]
        wanted = "a table"
    elif key == "allow-unknown":
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif isinstance(value, str):
        return value
    else:
        wanted = "a text"
    raise UsageError(f"{path}: [tool.decaybench.audit] {key} = {value!r}; allowed is {wanted}.")
