"""The command line as a real process, in an empty folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import REPOSITORY

collect_ignore = []
if not torch.cuda.is_available():
    collect_ignore.append("execution/test_cuda.py")
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported first

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
