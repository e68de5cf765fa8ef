"""Σᵢ αᵢ κ(s, dᵢ) atom by atom, at D evaluations of κ a number, for inputs that the pieces cannot take."""

import torch
from torch import Tensor

from decaybench.activations.kaf.basis_kernels import Kernel


def columns(alpha: Tensor, ndim: int) -> list[Tensor]:
    """Cuts α (C, D) into D tensors (1, C, 1, …) that broadcast against s (N, C, …)."""
    shape = (1, -1) + (1,) * (ndim - 2)
    return [column.reshape(shape) for column in alpha.unbind(1)]


def per_channel(x: Tensor) -> Tensor:
    """Sums (N, C, …) to (C,)."""
    return x.sum(dim=[0, *range(2, x.ndim)])


def forward(s: Tensor, alpha: Tensor, atoms: list[float], kernel: Kernel) -> Tensor:
    """Computes the sum, (N, C, …)."""
    out = torch.zeros_like(s)
    for a, d in zip(columns(alpha, s.ndim), atoms, strict=True):
        out.addcmul_(a, kernel.value(s - d))
    return out


def grad_s(grad: Tensor, s: Tensor, alpha: Tensor, atoms: list[float], kernel: Kernel) -> Tensor:
    """Computes the gradient of s, (N, C, …)."""
    slope = torch.zeros_like(s)
    for a, d in zip(columns(alpha, s.ndim), atoms, strict=True):
        slope.addcmul_(a, kernel.slope(s - d))
    return grad * slope


def grad_alpha(grad: Tensor, s: Tensor, alpha: Tensor, atoms: list[float], kernel: Kernel) -> Tensor:
    """Computes the gradient of α, (C, D), by reductions, without atomic adds."""
    out = torch.empty_like(alpha, memory_format=torch.contiguous_format)
    for i, d in enumerate(atoms):
        out[:, i] = per_channel(grad * kernel.value(s - d))
    return out
