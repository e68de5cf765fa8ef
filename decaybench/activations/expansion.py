"""Σᵢ αᵢ κ(s, dᵢ) without ever building the (…, D) tensor: forward and backward walk over the D atoms.

Only s and α are kept for the backward pass, which computes everything else again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclass(frozen=True)
class Kernel:
    """κ(s, d) = value(s − d), and its derivative in s."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def gaussian(precision: float) -> Kernel:
    """exp(−γ(s − d)²) with γ = ``precision``, in 1/s²."""
    return Kernel(
        lambda x: torch.exp(-precision * x * x),
        lambda x: -2 * precision * x * torch.exp(-precision * x * x),
    )


RELU = Kernel(torch.relu, lambda x: (x > 0).to(x.dtype))
SOFTPLUS = Kernel(F.softplus, torch.sigmoid)


def _columns(alpha: Tensor, ndim: int) -> list[Tensor]:
    """Cuts α (C, D) into D tensors (1, C, 1, …) that broadcast against s (N, C, …)."""
    shape = (1, -1) + (1,) * (ndim - 2)
    return [column.reshape(shape) for column in alpha.unbind(1)]


def _per_channel(x: Tensor) -> Tensor:
    """Sums (N, C, …) to (C,)."""
    return x.sum(dim=[0, *range(2, x.ndim)])


class WalkAtoms(torch.autograd.Function):
    """The sum for any kernel: D evaluations of κ, one atom at a time."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, alpha: Tensor, atoms: tuple[float, ...], kernel: Kernel) -> Tensor:
        ctx.save_for_backward(s, alpha)
        ctx.atoms, ctx.kernel = atoms, kernel
        out = torch.zeros_like(s)
        for a, d in zip(_columns(alpha, s.ndim), atoms, strict=True):
            out.addcmul_(a, kernel.value(s - d))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        s, alpha = ctx.saved_tensors
        slope = torch.zeros_like(s)
        grad_alpha = torch.empty_like(alpha)
        for i, (a, d) in enumerate(zip(_columns(alpha, s.ndim), ctx.atoms, strict=True)):
            slope.addcmul_(a, ctx.kernel.slope(s - d))
            grad_alpha[:, i] = _per_channel(grad * ctx.kernel.value(s - d))
        return grad * slope, grad_alpha, None, None


@dataclass(frozen=True)
class UniformGrid:
    """D atoms from −boundary to boundary, in units of their distance Δ, counted from the centre.

    With t = s/Δ and c = γΔ², κ(s, dⱼ) = exp(−c(t − j)²) = exp(−ct²)·exp(2ct)ʲ·exp(−cj²): two exponentials
    and a Horner polynomial instead of D exponentials.
    """

    D: int
    boundary: float
    c: float

    @property
    def delta(self) -> float:
        return 2 * self.boundary / (self.D - 1)

    @property
    def centred(self) -> list[float]:
        """The index j of every atom, counted from the centre: −(D − 1)/2 … (D − 1)/2."""
        return [i - (self.D - 1) / 2 for i in range(self.D)]

    def reach(self, dtype: torch.dtype) -> float:
        """|t| beyond which every kernel is below the type's rounding; inputs are clamped there."""
        digits = 41.0 if dtype == torch.float64 else 25.0  # −log of 1e-18 and of 1e-11
        return (self.D - 1) / 2 + math.sqrt(digits / self.c)

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether no power of the factored form leaves the range of ``dtype``."""
        limit = math.log(torch.finfo(dtype).max) - 10
        return self.c * self.reach(dtype) * max(self.D - 1, self.reach(dtype)) < limit

    def powers(self, s: Tensor) -> list[tuple[list[int], Tensor, Tensor]]:
        """Both halves of the dictionary: its atoms outwards, κ·exp(cj²) at its first atom, the ratio to the next."""
        reach = self.reach(s.dtype)
        t = (s / self.delta).clamp(-reach, reach)
        first = math.ceil((self.D - 1) / 2)
        right, left = list(range(first, self.D)), list(range(first - 1, -1, -1))
        square = -self.c * t * t
        halves = []
        for atoms, sign in ((right, 2 * self.c), (left, -2 * self.c)):
            start = abs(self.centred[atoms[0]])
            halves.append((atoms, torch.exp(square + start * sign * t), torch.exp(sign * t)))
        return halves


def _horner(ratio: Tensor, coefficients: list[Tensor]) -> Tensor:
    """Σₖ coefficients[k]·ratioᵏ, in place after the first step."""
    out = coefficients[-1].expand_as(ratio).clone()
    for a in reversed(coefficients[:-1]):
        torch.addcmul(a, out, ratio, out=out)
    return out


class FactoredGaussian(torch.autograd.Function):
    """The Gaussian sum on a uniform grid by the factoring of `UniformGrid`."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, alpha: Tensor, grid: UniformGrid) -> Tensor:
        ctx.save_for_backward(s, alpha)
        ctx.grid = grid
        heights = [math.exp(-grid.c * j * j) for j in grid.centred]
        a = _columns(alpha * alpha.new_tensor(heights), s.ndim)
        out = torch.zeros_like(s)
        for atoms, first, ratio in grid.powers(s):
            out.addcmul_(first, _horner(ratio, [a[i] for i in atoms]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        s, alpha = ctx.saved_tensors
        grid: UniformGrid = ctx.grid
        heights = alpha.new_tensor([math.exp(-grid.c * j * j) for j in grid.centred])
        a = _columns(alpha * heights, s.ndim)
        ja = _columns(alpha * heights * alpha.new_tensor(grid.centred), s.ndim)
        value, moment = torch.zeros_like(s), torch.zeros_like(s)  # Σ αⱼκⱼ and Σ jαⱼκⱼ
        grad_alpha = torch.empty_like(alpha)
        for atoms, first, ratio in grid.powers(s):
            value.addcmul_(first, _horner(ratio, [a[i] for i in atoms]))
            moment.addcmul_(first, _horner(ratio, [ja[i] for i in atoms]))
            weighted = grad * first
            for i in atoms:
                grad_alpha[:, i] = _per_channel(weighted)
                weighted *= ratio
        t = s / grid.delta
        slope = (moment - t * value) * (2 * grid.c / grid.delta)
        slope = slope.masked_fill(t.abs() >= grid.reach(s.dtype), 0.0)
        return grad * slope, grad_alpha * heights, None
