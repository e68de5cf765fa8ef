"""Where a record comes from: device, versions, time."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decaybench.activations import backends


def device_name(device: torch.device) -> str:
    """Returns the name of the device's chip."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()} ({os.cpu_count()} cores)"


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a chip that does not say
        return platform.processor() or platform.machine()


def provenance(device: torch.device, model: nn.Module | None = None) -> dict[str, Any]:
    """Describes where a record comes from: device, versions, time. Never part of a run's identity.

    Args:
        device: The device of the training.
        model: The network, whose activations' backends are named.
    """
    packages = ("decaybench", "torch", "numpy")
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _blas(),
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", "default") if torch.backends.mkldnn.is_available() else "none",  # type: ignore[no-untyped-call]
        "backends": backends(model) if model is not None else {},
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@lru_cache(maxsize=1)
def _blas() -> str:
    """Returns the library of matrix products that torch was built with."""
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else "unknown"


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """Returns the commit of the checkout this package is run from, if it is one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
