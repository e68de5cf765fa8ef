"""PReLU: `torch.nn.PReLU`, a learned slope for negative inputs, with a fast backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decaybench.activations import compiled
from decaybench.activations.compiled import call, layout
from decaybench.activations.custom_op import differentiable, merged, operation, split, transformed
from decaybench.native import TYPES


class PReLU(nn.PReLU):
    """A drop-in for `torch.nn.PReLU`, state dict included: s where s > 0, otherwise a·s.

    Source: He et al. 2015, arXiv 1502.01852, section 2.1; the initial slope 0.25 is the paper's.

    The output has the input's type. Half precision is for storing, not for learning: autocast, which would round the
    slope to it, changes nothing here.
    """

    def forward(self, s: Tensor) -> Tensor:
        kind = s.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._of(s)
        return self._of(s)

    def _of(self, s: Tensor) -> Tensor:
        slope = self.weight
        if s.dtype in (torch.bfloat16, torch.float16) and slope.dtype == torch.float32:
            return self._of(s.float()).to(s.dtype)
        ours = s.device.type == "cpu" and s.ndim >= 2 and s.dtype == slope.dtype and s.dtype in TYPES
        if not ours or (not compiled.large_enough(s) and not transformed()):  # under vmap, torch's own warns or fails
            return super().forward(s)
        if len(slope) not in (1, s.shape[1]):
            raise ValueError(f"PReLU({len(slope)}) takes (N, {len(slope)}, …), not {tuple(s.shape)}")
        return _learned(s, slope.expand(s.shape[1]))  # type: ignore[no-any-return]


def prelu(channels: int, shared: bool = False, init: float = 0.25) -> nn.Module:
    """Makes a `PReLU` with one learned slope per channel, or one for all."""
    return PReLU(1 if shared else channels, init)


def _forward(s: Tensor, slope: Tensor) -> Tensor:
    s, shape = layout(s, slope)
    library = compiled.usable(s)
    if library is None:
        return torch.prelu(s, slope)
    out, slope = torch.empty_like(s), slope.contiguous()
    call(library.prelu_forward, s, slope, out, shape=shape)
    return out


def _backward(grad: Tensor, s: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    s, shape = layout(s, slope)
    grad = grad if grad.stride() == s.stride() else torch.empty_like(s).copy_(grad)
    library = compiled.usable(s)
    if library is None:
        left = s <= 0
        a = slope.reshape(1, -1, *[1] * (s.ndim - 2))
        return torch.where(left, a * grad, grad), (left * s * grad).sum([0, *range(2, s.ndim)])
    slope = slope.contiguous()
    down, to_slope = torch.empty_like(s), torch.empty_like(slope)
    call(library.prelu_backward, grad, s, slope, down, to_slope, shape=shape)
    return down, to_slope


def _fake(s: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(layout(s, slope)[0])


def _fake_backward(grad: Tensor, s: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(layout(s, slope)[0]), torch.empty_like(slope, memory_format=torch.contiguous_format)


def _second(grad: Tensor, saved: Sequence[Tensor], constants: Any, upstream: Any) -> tuple[Tensor, ...]:
    (s, slope), (down, to_slope) = saved, upstream
    shape = (1, -1, *[1] * (s.ndim - 2))
    left, a, b = s <= 0, slope.reshape(shape), to_slope.reshape(shape)
    d_grad = torch.where(left, a * down + b * s, down)
    return d_grad, left * grad * b, (left * grad * down).sum([0, *range(2, s.ndim)])


def _vmap(info: Any, dims: tuple[int | None, ...], s: Tensor, slope: Tensor) -> tuple[Tensor, int]:
    B = info.batch_size
    return split(_prelu(merged(s, dims[0], B, 1), merged(slope, dims[1], B, 0)), B, 1), 1


def _vmap_backward(info: Any, dims: tuple[int | None, ...], grad: Tensor, s: Tensor, slope: Tensor) -> Any:
    B = info.batch_size
    down, to_slope = _prelu_backward(
        merged(grad, dims[0], B, 1), merged(s, dims[1], B, 1), merged(slope, dims[2], B, 0)
    )
    return (split(down, B, 1), split(to_slope, B, 0)), (1, 0)


_prelu = operation("prelu(Tensor s, Tensor slope) -> Tensor", _forward, _fake, _vmap)
_prelu_backward = operation(
    "prelu_backward(Tensor grad, Tensor s, Tensor slope) -> (Tensor, Tensor)", _backward, _fake_backward, _vmap_backward
)
_learned = differentiable(_prelu, _prelu_backward, _second, tensors=2)
