"""The command line as a real process, in an empty folder."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from helpers import REPOSITORY

settings.register_profile("long", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "3000")), deadline=None)

collect_ignore = []
if not torch.cuda.is_available():
    collect_ignore.append("execution/test_cuda.py")
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported first


@pytest.fixture(autouse=True)
def imports_as_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Takes the modules and folders of a test's own code off the import path after it."""
    yield
    base = f"{tmp_path_factory.getbasetemp()}{os.sep}"
    sys.path[:] = [p for p in sys.path if not p.startswith(base)]
    for name, module in list(sys.modules.items()):  # thousands, after each test: texts are compared and no paths
        if str(getattr(module, "__file__", None)).startswith(base):
            del sys.modules[name]


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs ``decaybench …`` as a process in an empty folder."""

    def run(*arguments: str, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "decaybench", *arguments]
        environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(REPOSITORY)}
        kwargs = {"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL, **kwargs}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)

    return run
