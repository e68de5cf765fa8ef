"""The KAF as an operation of torch: dispatch, gradients, vmap, and what a compiler must know of it."""

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from decaybench.activations import native, table, walk
from decaybench.activations.kernels import Kernel, kernel
from decaybench.activations.merge import merged, split
from decaybench.activations.native import Grid, layout, pointer, threads
from decaybench.activations.pieces import Pieces, pieces


def atoms(D: int, boundary: float) -> list[float]:
    """The dictionary: D atoms from −boundary to boundary, in units of s."""
    delta = 2 * boundary / (D - 1)
    return [(i - (D - 1) / 2) * delta for i in range(D)]


def _known(s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float) -> tuple[Kernel, list[float], Any]:
    D = alpha.shape[1]
    found = pieces(name, precision, D, boundary, s.dtype == torch.float32)
    return kernel(name, precision), atoms(D, boundary), found


@torch.library.custom_op("decaybench::kaf", mutates_args=())
def kaf(s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float) -> Tensor:
    """f(s) = Σᵢ αᵢ κ(s, dᵢ), channel by channel.

    Args:
        s: (N, C, …), float32 or float64.
        alpha: (C, D), of the same type.
        name: ``gaussian``, ``relu`` or ``softplus``.
        precision: γ of the Gaussian, in 1/s².
        boundary: The dictionary runs from −boundary to boundary.

    Returns:
        (N, C, …), laid out as s.
    """
    k, d, found = _known(s, alpha, name, precision, boundary)
    if found is None:
        return walk.forward(s, alpha, d, k)
    if compiled := native.usable(s):
        dense, shape = layout(s)
        out, alpha = torch.empty_like(dense), alpha.contiguous()
        arguments = (pointer(dense), pointer(alpha), pointer(out), *shape, _grid(found), threads())
        return walk.forward(s, alpha, d, k) if compiled.kaf_forward(*arguments) else out
    return table.forward(s, alpha, found) if torch.isfinite(s).all() else walk.forward(s, alpha, d, k)


@torch.library.custom_op("decaybench::kaf_backward", mutates_args=())
def kaf_backward(
    grad: Tensor, s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float
) -> tuple[Tensor, Tensor]:
    """The gradients of s (N, C, …) and of α (C, D): everything is computed again from s and α."""
    k, d, found = _known(s, alpha, name, precision, boundary)
    if found is not None and (compiled := native.usable(s)):
        dense, shape = layout(s)
        up = grad if grad.stride() == dense.stride() else torch.empty_like(dense).copy_(grad)
        alpha = alpha.contiguous()
        down, to_alpha = torch.empty_like(dense), torch.empty_like(alpha)
        tensors = (pointer(t) for t in (up, dense, alpha, down, to_alpha))
        if not compiled.kaf_backward(*tensors, *shape, _grid(found), threads()):
            return down, to_alpha
    elif found is not None and torch.isfinite(s).all():
        down = table.grad_s(grad, s, alpha, found)
        counted = s.device.type == "cpu"  # elsewhere bincount adds in any order
        return down, table.grad_alpha(grad, s, alpha, found) if counted else walk.grad_alpha(grad, s, alpha, d, k)
    return walk.grad_s(grad, s, alpha, d, k), walk.grad_alpha(grad, s, alpha, d, k)


@lru_cache(maxsize=64)
def _grid(p: Pieces) -> Any:
    return ctypes.byref(Grid(p))


@kaf.register_fake
def _(s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float) -> Tensor:
    return torch.empty_like(s)


@kaf_backward.register_fake
def _(grad: Tensor, s: Tensor, alpha: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(s), torch.empty_like(alpha)


class Function(torch.autograd.Function):
    """`kaf` with its gradient; ``torch.func`` wants it said in this form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float) -> Tensor:
        return kaf(s, alpha, name, precision, boundary)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        s, alpha, ctx.name, ctx.precision, ctx.boundary = inputs
        ctx.save_for_backward(s, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        s, alpha = ctx.saved_tensors
        down, to_alpha = Backward.apply(grad, s, alpha, ctx.name, ctx.precision, ctx.boundary)
        return down, to_alpha, None, None, None


class Backward(torch.autograd.Function):
    """`kaf_backward` with its gradient by the definition, differentiable as often as anybody likes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float
    ) -> tuple[Tensor, Tensor]:
        return kaf_backward(grad, s, alpha, name, precision, boundary)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, s, alpha, ctx.name, ctx.precision, ctx.boundary = inputs
        ctx.save_for_backward(grad, s, alpha)

    @staticmethod
    def backward(ctx: Any, down: Tensor, to_alpha: Tensor) -> tuple[Any, ...]:
        grad, s, alpha = ctx.saved_tensors
        k = kernel(ctx.name, ctx.precision)
        d = torch.tensor(atoms(alpha.shape[1], ctx.boundary), dtype=s.dtype, device=s.device)
        x = s[..., None] - d  # (N, C, …, D)
        value, slope, curvature = k.value(x), k.slope(x), k.curvature(x)
        shape = (1, alpha.shape[0], *[1] * (s.ndim - 2), -1)
        a, b = alpha.reshape(shape), to_alpha.reshape(shape)
        d_grad = down * (slope * a).sum(-1) + (value * b).sum(-1)
        d_s = grad * (down * (curvature * a).sum(-1) + (slope * b).sum(-1))
        d_alpha = ((grad * down)[..., None] * slope).sum([0, *range(2, s.ndim)])
        return d_grad, d_s, d_alpha, None, None, None


@kaf.register_vmap
def _(info: Any, dims: tuple[int | None, ...], s: Tensor, alpha: Tensor, *rest: Any) -> tuple[Tensor, int]:
    B = info.batch_size
    return split(kaf(merged(s, dims[0], B, 1), merged(alpha, dims[1], B, 0), *rest), B, 1), 1


@kaf_backward.register_vmap
def _(info: Any, dims: tuple[int | None, ...], grad: Tensor, s: Tensor, alpha: Tensor, *rest: Any) -> Any:
    B = info.batch_size
    down, to_alpha = kaf_backward(
        merged(grad, dims[0], B, 1), merged(s, dims[1], B, 1), merged(alpha, dims[2], B, 0), *rest
    )
    return (split(down, B, 1), split(to_alpha, B, 0)), (1, 0)
