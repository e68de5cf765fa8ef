"""Two-dimensional kernel activation functions: one learned function of two variables for each pair of channels."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decaybench.activations.custom_op import differentiable, merged, operation, split
from decaybench.activations.float64 import device_with_float64
from decaybench.activations.kaf.functional import atoms

TILE = 1 << 14  # numbers at a time


class KAF2D(nn.Module):
    """f(s₁, s₂) = Σᵢⱼ αᵢⱼ κ(s₁ − dᵢ) κ(s₂ − dⱼ), Gaussian κ, on a grid of D × D atoms; only α is learned.

    Source: Scardapane et al. 2017, arXiv 1707.04035, the 2D-KAF. A Gaussian of two variables is a product, so that
    a number costs two times D kernels and a product with α, never D² kernels.

    Acts on dimension 1: input (N, 2·channels, …), pairs side by side; output (N, channels, …).

    Args:
        channels: C, the number of pairs.
        D: Atoms along each side of the grid.
        boundary: The grid runs from −boundary to boundary, in units of the input.
        gamma: Precision of the kernel in units of 1/Δ², Δ the distance of two atoms.
        std: α starts as N(0, std²).
    """

    def __init__(
        self, channels: int, D: int = 10, boundary: float = 4.0, gamma: float = 0.125, std: float = 0.8
    ) -> None:
        super().__init__()
        self.D, self.boundary, self.std = D, boundary, std
        self.precision = gamma / (2 * boundary / (D - 1)) ** 2
        self.alpha = nn.Parameter(torch.empty(channels, D, D))  # (C, D, D)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes α again, as the constructor did."""
        self.alpha.normal_(std=self.std)

    def forward(self, s: Tensor) -> Tensor:
        C = len(self.alpha)
        if s.ndim < 2 or s.shape[1] != 2 * C:
            raise ValueError(f"KAF2D({C}) takes (N, {2 * C}, …), not {tuple(s.shape)}")
        wide = torch.promote_types(s.dtype, torch.float32)
        return _kaf2d(s.to(wide), self.alpha.to(wide), self.precision, self.boundary).to(s.dtype)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{len(self.alpha)}, D={self.D}, boundary={self.boundary}"


def plain2d(s: Tensor, alpha: Tensor, d: Tensor, precision: float) -> Tensor:
    """Computes the definition with its (…, D, D) tensor, for reading and checking.

    Args:
        s: (N, 2·C, …).
        alpha: (C, D, D).
        d: (D,), the atoms along each side.
        precision: γ, in 1/s².
    """
    left, right = s[:, 0::2, ..., None, None], s[:, 1::2, ..., None, None]  # (N, C, …, 1, 1)
    kappa = torch.exp(-precision * ((left - d[:, None]) ** 2 + (right - d) ** 2))  # (N, C, …, D, D)
    return (kappa * alpha.reshape(1, len(alpha), *[1] * (s.ndim - 2), *alpha.shape[1:])).sum((-2, -1))


def _rows(x: Tensor) -> Tensor:
    """Reshapes (n, C, …) to (C, T), T the numbers of a channel."""
    return x.transpose(0, 1).flatten(1)


def _kappa(half: Tensor, D: int, precision: float, boundary: float) -> tuple[Tensor, Tensor]:
    """Computes κ of one half (n, C, …) of the pairs, and the distances to the atoms; both (C, D, T)."""
    d = torch.tensor(atoms(D, boundary), dtype=half.dtype, device=half.device)
    x = _rows(half)[:, None] - d[:, None]
    return torch.exp(-precision * x * x), x


def _first(grad: Tensor, s: Tensor, alpha: Tensor, precision: float, boundary: float) -> tuple[Tensor, Tensor]:
    """Computes the gradients of s and α for one tile, in operations that torch can differentiate again."""
    left, x = _kappa(s[:, 0::2], alpha.shape[1], precision, boundary)
    right, y = _kappa(s[:, 1::2], alpha.shape[1], precision, boundary)
    up = _rows(grad)  # (C, T)
    both = [(x * left * (alpha @ right)).sum(1), (y * right * (alpha.mT @ left)).sum(1)]
    down = -2 * precision * up[:, None] * torch.stack(both, 1)  # (C, 2, T)
    shape = (s.shape[1], s.shape[0], *s.shape[2:])
    return down.reshape(shape).transpose(0, 1), (up[:, None] * left) @ right.mT


def _tiles(s: Tensor) -> Iterator[slice]:
    step = max(1, TILE // max(1, s[:1].numel()))
    return (slice(i, i + step) for i in range(0, len(s), step))


def _forward(s: Tensor, alpha: Tensor, precision: float, boundary: float) -> Tensor:
    out = _fake(s)
    for tile in _tiles(s):
        left, _ = _kappa(s[tile][:, 0::2], alpha.shape[1], precision, boundary)
        right, _ = _kappa(s[tile][:, 1::2], alpha.shape[1], precision, boundary)
        value = (left * (alpha @ right)).sum(1)  # (C, T)
        n, _, *rest = s[tile].shape
        out[tile] = value.reshape(len(alpha), n, *rest).transpose(0, 1)
    return out


def _backward(grad: Tensor, s: Tensor, alpha: Tensor, precision: float, boundary: float) -> tuple[Tensor, Tensor]:
    where = device_with_float64(s.device)
    down, to_alpha = torch.empty_like(s), torch.zeros(alpha.shape, dtype=torch.float64, device=where)
    for tile in _tiles(s):
        down[tile], part = _first(grad[tile], s[tile], alpha, precision, boundary)
        to_alpha += part.to(where)
    return down, to_alpha.to(alpha.dtype).to(alpha.device)


def _second(grad: Tensor, saved: Sequence[Tensor], constants: Any, upstream: Any) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (grad, *saved)]
        first = _first(inputs[0], inputs[1], inputs[2], *constants)
        return torch.autograd.grad(first, inputs, tuple(upstream))


def _fake(s: Tensor, *_: Any) -> Tensor:
    return s.new_empty((s.shape[0], s.shape[1] // 2, *s.shape[2:]))


def _fake_backward(grad: Tensor, s: Tensor, alpha: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(s), torch.empty_like(alpha)


def _vmap(info: Any, dims: tuple[int | None, ...], s: Tensor, alpha: Tensor, *rest: Any) -> tuple[Tensor, int]:
    B = info.batch_size
    return split(_op(merged(s, dims[0], B, 1), merged(alpha, dims[1], B, 0), *rest), B, 1), 1


def _vmap_backward(info: Any, dims: tuple[int | None, ...], grad: Tensor, s: Tensor, alpha: Tensor, *rest: Any) -> Any:
    B = info.batch_size
    tensors = (merged(grad, dims[0], B, 1), merged(s, dims[1], B, 1), merged(alpha, dims[2], B, 0))
    down, to_alpha = _op_backward(*tensors, *rest)
    return (split(down, B, 1), split(to_alpha, B, 0)), (1, 0)


_op = operation("kaf2d(Tensor s, Tensor alpha, float precision, float boundary) -> Tensor", _forward, _fake, _vmap)
_op_backward = operation(
    "kaf2d_backward(Tensor grad, Tensor s, Tensor alpha, float precision, float boundary) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
    _vmap_backward,
)
_kaf2d = differentiable(_op, _op_backward, _second, tensors=2)
