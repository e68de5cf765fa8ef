"""The precision of a run: float32 throughout, TF32 products on a CUDA GPU, or bfloat16 by autocast."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from decaybench.errors import UsageError
from decaybench.study.config import Precision, RunConfig


def check(configs: Iterable[RunConfig], device: torch.device) -> None:
    """Checks that the device has the precision that the runs ask for.

    Raises:
        UsageError: For TF32 on anything but a CUDA GPU of compute capability 8 or more.
    """
    if not any(config.precision == "tf32" for config in configs):
        return
    where = device.type
    if where == "cuda" and torch.cuda.is_available():  # it may be one of a cluster's, and not here
        major, minor = torch.cuda.get_device_capability(device)
        where = "cuda" if major >= 8 else f"a GPU of compute capability {major}.{minor}"
    if where != "cuda":
        raise UsageError(
            f"precision tf32: only CUDA GPUs from compute capability 8.0 on have it, and this study runs on {where}; "
            "use another device, or --precision float32 or bfloat16."
        )


@contextmanager
def products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Sets the precision of products, since torch's convolutions on a GPU are otherwise TF32's."""
    if device.type != "cuda":  # nothing to choose
        yield
        return
    before = [setting.fp32_precision for setting in _settings()]
    _set(["tf32" if precision == "tf32" else "ieee"] * len(before))
    try:
        yield
    finally:
        _set(before)


def _settings() -> tuple[Any, ...]:
    """Returns torch's settings of precision: for matrix products, convolutions and recurrent networks."""
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _set(values: list[str]) -> None:
    # The older switches first: torch refuses to be asked where the two disagree.
    torch.backends.cuda.matmul.allow_tf32 = values[0] == "tf32"
    torch.backends.cudnn.allow_tf32 = values[1] == "tf32"
    for setting, value in zip(_settings(), values, strict=True):
        setting.fp32_precision = value


def lowered(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Returns a context for forward passes: autocast to bfloat16 if the run asks for it; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
