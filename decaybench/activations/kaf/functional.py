"""The KAF as an operation of torch: choice of the implementation, gradients, vmap, shapes for compilers."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from decaybench.activations import compiled
from decaybench.activations.compiled import Grid, call, layout
from decaybench.activations.custom_op import differentiable, merged, operation, split
from decaybench.activations.kaf import piecewise_torch, reference, triton
from decaybench.activations.kaf.basis_kernels import Kernel, kernel
from decaybench.activations.kaf.piecewise import Pieces, pieces


def atoms(D: int, boundary: float) -> list[float]:
    """Returns the dictionary: D atoms from −boundary to boundary, in units of s."""
    delta = 2 * boundary / (D - 1)
    return [(i - (D - 1) / 2) * delta for i in range(D)]


def _atomwise(alpha: Tensor, name: str, precision: float, boundary: float) -> tuple[Tensor, list[float], Kernel]:
    """Returns α, the atoms and the kernel, as `reference` takes them."""
    return alpha, atoms(alpha.shape[1], boundary), kernel(name, precision)


def _forward(s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float) -> Tensor:
    """Computes f(s) = Σᵢ αᵢ κ(s, dᵢ), channel by channel.

    Args:
        s: (N, C, …), float32 or float64.
        alpha: (C, D), of the same type.
        name: ``gaussian``, ``relu`` or ``softplus``.
        precision: γ of the Gaussian, in 1/s².
        boundary: The dictionary runs from −boundary to boundary.

    Returns:
        (N, C, …), laid out as `layout` has s.
    """
    found = pieces(name, precision, alpha.shape[1], boundary, s.dtype == torch.float32)
    s, shape = layout(s, alpha)
    if found is None:  # too many pieces
        return reference.forward(s, *_atomwise(alpha, name, precision, boundary))
    if triton.usable(s):
        return triton.forward(s, shape, alpha, name, precision, boundary, found)
    if library := compiled.usable(s):
        out, alpha = torch.empty_like(s), alpha.contiguous()
        if not call(library.kaf_forward, s, alpha, out, shape=shape, grid=_grid(found)):
            return out
    elif torch.isfinite(s).all():
        return piecewise_torch.forward(s, alpha, found)
    else:
        out = piecewise_torch.forward(torch.nan_to_num(s), alpha, found)
    odd = _odd(s)
    out[:, odd] = reference.forward(s[:, odd], *_atomwise(alpha[odd], name, precision, boundary))
    return out


def _backward(
    grad: Tensor, s: Tensor, alpha: Tensor, name: str, precision: float, boundary: float
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of s (N, C, …) and of α (C, D), everything again from s and α."""
    found = pieces(name, precision, alpha.shape[1], boundary, s.dtype == torch.float32)
    s, shape = layout(s, alpha)
    grad = grad if grad.stride() == s.stride() else torch.empty_like(s).copy_(grad)
    known = _atomwise(alpha, name, precision, boundary)
    if found is None:
        return reference.grad_s(grad, s, *known), reference.grad_alpha(grad, s, *known)
    if triton.usable(s):
        return triton.backward(grad, s, shape, alpha, name, precision, boundary, found)
    if library := compiled.usable(s):
        alpha = alpha.contiguous()
        down, to_alpha = torch.empty_like(s), torch.empty_like(alpha)
        if not call(library.kaf_backward, grad, s, alpha, down, to_alpha, shape=shape, grid=_grid(found)):
            return down, to_alpha
    else:
        finite = bool(torch.isfinite(s).all())
        down, counted = piecewise_torch.backward(grad, s if finite else torch.nan_to_num(s), alpha, found)
        to_alpha = reference.grad_alpha(grad, s, *known) if counted is None else counted
        if finite:
            return down, to_alpha
    odd = _odd(s)
    known = _atomwise(alpha[odd], name, precision, boundary)
    down[:, odd] = reference.grad_s(grad[:, odd], s[:, odd], *known)
    to_alpha[odd] = reference.grad_alpha(grad[:, odd], s[:, odd], *known)
    return down, to_alpha


def _odd(s: Tensor) -> Tensor:
    """Finds the channels (C,) that hold a NaN or ±Inf; only they are computed atom by atom."""
    return ~torch.isfinite(s).all(0).flatten(1).all(1) if s.ndim > 2 else ~torch.isfinite(s).all(0)


@lru_cache(maxsize=64)
def _grid(p: Pieces) -> Any:
    return ctypes.byref(Grid(p))


def _fake(s: Tensor, alpha: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(layout(s, alpha)[0])


def _fake_backward(grad: Tensor, s: Tensor, alpha: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(layout(s, alpha)[0]), torch.empty_like(alpha, memory_format=torch.contiguous_format)


def _second(grad: Tensor, saved: Sequence[Tensor], constants: Any, upstream: Any) -> tuple[Tensor, ...]:
    """Computes the gradient of the gradient by the definition, with its (…, D) tensor; differentiable again."""
    (s, alpha), (name, precision, boundary), (down, to_alpha) = saved, constants, upstream
    k = kernel(name, precision)
    d = torch.tensor(atoms(alpha.shape[1], boundary), dtype=s.dtype, device=s.device)
    x = s[..., None] - d  # (N, C, …, D)
    value, slope, curvature = k.value(x), k.slope(x), k.curvature(x)
    shape = (1, alpha.shape[0], *[1] * (s.ndim - 2), -1)
    a, b = alpha.reshape(shape), to_alpha.reshape(shape)
    d_grad = down * (slope * a).sum(-1) + (value * b).sum(-1)
    d_s = grad * (down * (curvature * a).sum(-1) + (slope * b).sum(-1))
    return d_grad, d_s, ((grad * down)[..., None] * slope).sum([0, *range(2, s.ndim)])


def _vmap(info: Any, dims: tuple[int | None, ...], s: Tensor, alpha: Tensor, *rest: Any) -> tuple[Tensor, int]:
    B = info.batch_size
    return split(_kaf(merged(s, dims[0], B, 1), merged(alpha, dims[1], B, 0), *rest), B, 1), 1


def _vmap_backward(info: Any, dims: tuple[int | None, ...], grad: Tensor, s: Tensor, alpha: Tensor, *rest: Any) -> Any:
    B = info.batch_size
    down, to_alpha = _kaf_backward(
        merged(grad, dims[0], B, 1), merged(s, dims[1], B, 1), merged(alpha, dims[2], B, 0), *rest
    )
    return (split(down, B, 1), split(to_alpha, B, 0)), (1, 0)


_KIND = "str name, float precision, float boundary"
_kaf = operation(f"kaf(Tensor s, Tensor alpha, {_KIND}) -> Tensor", _forward, _fake, _vmap)
_kaf_backward = operation(
    f"kaf_backward(Tensor grad, Tensor s, Tensor alpha, {_KIND}) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
    _vmap_backward,
)
kaf = differentiable(_kaf, _kaf_backward, _second, tensors=2)
