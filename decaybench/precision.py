"""In which numbers a run is computed: float32 throughout, TF32 products on a CUDA GPU, or bfloat16 by autocast."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from decaybench.config import Precision, RunConfig
from decaybench.errors import UsageError


def check(configs: Iterable[RunConfig], device: torch.device) -> None:
    """Refuses what a device cannot do, rather than do something else under that name.

    Raises:
        UsageError: For TF32 on anything but a CUDA GPU.
    """
    if device.type != "cuda" and any(config.precision == "tf32" for config in configs):
        raise UsageError(
            f"precision tf32: only CUDA GPUs have it, and this study runs on {device.type}; "
            "use --device cuda, or --precision float32 or bfloat16."
        )


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Within it, products of float32 are those of float32: torch's convolutions on a GPU are otherwise TF32's."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def lowered(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Around a forward pass: products in bfloat16, if the run is; its parameters and sums stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
