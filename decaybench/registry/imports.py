"""Imports what ``package.module:name`` and ``path/to/file.py:name`` name."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from decaybench.errors import UsageError, unknown


def is_target(text: str) -> bool:
    """Tells whether a text names an object in a user's own code."""
    return ":" in text


def _origin(module: str) -> Path | None:
    """Finds the source file of a module without importing it."""
    if module.endswith(".py"):
        path = Path(module)
        return path if path.is_file() else None
    here = str(Path.cwd())
    if here not in sys.path:  # a console script, unlike `python -m`, does not look in the current folder
        sys.path.insert(0, here)
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a package whose own code fails; importing it will say how
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def source_fingerprint(target: str) -> str:
    """Hashes the source of a target, so that changed code is a different run.

    Raises:
        UsageError: When there is no such module or file.
    """
    module = target.partition(":")[0]
    path = _origin(module)
    if path is None:
        where = "no such file" if module.endswith(".py") else f"looked in {Path.cwd()} and the installed packages"
        raise UsageError(f"Cannot find {module!r} of {target!r}: {where}.")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def load(target: str) -> Any:
    """Imports what a target names, which runs the code of its module.

    Raises:
        UsageError: When the module does not import, with its own error, or has no such attribute.
    """
    module_name, _, attribute = target.partition(":")
    path = _origin(module_name)
    try:
        module = _import_file(path) if path and module_name.endswith(".py") else importlib.import_module(module_name)
    except Exception as error:
        where = "" if path else f" (looked in {Path.cwd()} and the installed packages)"
        raise UsageError(
            f"Cannot import {module_name!r} of {target!r}: {type(error).__name__}: {error}{where}."
        ) from error
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise unknown(f"attribute of {module_name}", attribute, public)
    return getattr(module, attribute)


def _import_file(path: Path) -> Any:
    """Imports a file once, under a unique module name."""
    name = f"decaybench_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
