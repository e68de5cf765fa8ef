"""The kernels κ(x), x = s − d: their values, their derivatives, and how smooth and how wide they are."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernel:
    """κ(x) with its first two derivatives.

    Attributes:
        value: κ.
        slope: κ′.
        curvature: κ″, zero at a kink.
        smooth: The width of what must be resolved, in units of x; None where κ is linear but for a kink at 0.
        reach: Given ε, the |x| beyond which κ differs from its asymptotes by less than ε.
        tail: κ′ far to the right.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]
    smooth: float | None
    reach: Callable[[float], float]
    tail: float = 0.0


def gaussian(precision: float) -> Kernel:
    """Returns the kernel exp(−γx²) with γ = ``precision``, in 1/s²."""

    def value(x: Tensor) -> Tensor:
        return torch.exp(-precision * x * x)

    return Kernel(
        value,
        lambda x: -2 * precision * x * value(x),
        lambda x: (4 * precision**2 * x * x - 2 * precision) * value(x),
        smooth=1 / math.sqrt(2 * precision),
        reach=lambda epsilon: math.sqrt(-math.log(epsilon) / precision),
    )


RELU = Kernel(torch.relu, lambda x: (~(x <= 0)).to(x.dtype), torch.zeros_like, None, lambda epsilon: 0.0, 1.0)
SOFTPLUS = Kernel(
    F.softplus,
    torch.sigmoid,
    lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
    smooth=1.0,
    reach=lambda epsilon: -math.log(epsilon),
    tail=1.0,
)


def kernel(name: str, precision: float) -> Kernel:
    """Returns the kernel of a name: ``gaussian`` (with γ = ``precision``), ``relu`` or ``softplus``."""
    return gaussian(precision) if name == "gaussian" else {"relu": RELU, "softplus": SOFTPLUS}[name]
