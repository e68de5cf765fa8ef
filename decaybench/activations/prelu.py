"""PReLU: a learned slope for negative inputs, `torch.nn.PReLU` with a backward pass at the cost of a ReLU's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decaybench.activations import native
from decaybench.activations.native import call, layout
from decaybench.activations.operation import differentiable, merged, operation, split, transformed


class PReLU(nn.PReLU):
    """S where s > 0, otherwise a·s; a drop-in for `torch.nn.PReLU`, state dict included.

    Source: He et al. 2015, arXiv 1502.01852, section 2.1; the initial slope 0.25 is the paper's.
    """

    def forward(self, s: Tensor) -> Tensor:
        if s.dtype != self.weight.dtype and s.is_floating_point():  # half precision is for storing, not for learning
            wide = torch.promote_types(s.dtype, self.weight.dtype)
            return self.forward(s.to(wide)).to(s.dtype) if s.dtype != wide else super().forward(s)
        ours = s.device.type == "cpu" and s.ndim >= 2 and s.dtype in native.TYPES
        if not ours or (not native.large(s) and not transformed()):  # under vmap, torch's own warns or fails
            return super().forward(s)
        given = len(self.weight)
        if given not in (1, s.shape[1]):
            raise ValueError(f"PReLU({given}) takes (N, {given}, …), not {tuple(s.shape)}")
        return _learned(s, self.weight.to(s.dtype).expand(s.shape[1]))  # type: ignore[no-any-return]


def prelu(channels: int, shared: bool = False, init: float = 0.25) -> nn.Module:
    """One learned slope per channel, or one for all."""
    return PReLU(1 if shared else channels, init)


def _forward(s: Tensor, slope: Tensor) -> Tensor:
    s, shape = layout(s, slope)
    compiled = native.usable(s)
    if compiled is None:
        return torch.prelu(s, slope)
    out, slope = torch.empty_like(s), slope.contiguous()
    call(compiled.prelu_forward, s, slope, out, shape=shape)
    return out


def _backward(grad: Tensor, s: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    s, shape = layout(s, slope)
    grad = grad if grad.stride() == s.stride() else torch.empty_like(s).copy_(grad)
    compiled = native.usable(s)
    if compiled is None:
        left = s <= 0
        a = slope.reshape(1, -1, *[1] * (s.ndim - 2))
        return torch.where(left, a * grad, grad), (left * s * grad).sum([0, *range(2, s.ndim)])
    slope = slope.contiguous()
    down, to_slope = torch.empty_like(s), torch.empty_like(slope)
    call(compiled.prelu_backward, grad, s, slope, down, to_slope, shape=shape)
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
