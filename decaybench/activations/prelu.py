"""PReLU: a learned slope for negative inputs, `torch.nn.PReLU` with a backward pass at the cost of a ReLU's."""

from typing import Any

import torch
from torch import Tensor, nn

from decaybench.activations import native
from decaybench.activations.merge import merged, split
from decaybench.activations.native import layout, pointer, threads


class PReLU(nn.PReLU):
    """S where s > 0, otherwise a·s; a drop-in for `torch.nn.PReLU`, state dict included.

    Source: He et al. 2015, arXiv 1502.01852, section 2.1; the initial slope 0.25 is the paper's.
    """

    def forward(self, s: Tensor) -> Tensor:
        if s.device.type != "cpu" or s.ndim < 2 or s.numel() < native.WORTH or s.dtype not in native.TYPES:
            return super().forward(s)
        if self.num_parameters not in (1, s.shape[1]):
            raise ValueError(f"PReLU({self.num_parameters}) takes (N, {self.num_parameters}, …), not {tuple(s.shape)}")
        return _Function.apply(s, self.weight.to(s.dtype).expand(s.shape[1]))  # type: ignore[no-any-return]


def prelu(channels: int, shared: bool = False, init: float = 0.25) -> nn.Module:
    """One learned slope per channel, or one for all."""
    return PReLU(1 if shared else channels, init)


@torch.library.custom_op("decaybench::prelu", mutates_args=())
def _prelu(s: Tensor, slope: Tensor) -> Tensor:
    compiled = native.usable(s)
    if compiled is None:
        return torch.prelu(s, slope)
    dense, shape = layout(s)
    out, slope = torch.empty_like(dense), slope.contiguous()
    compiled.prelu_forward(pointer(dense), pointer(slope), pointer(out), *shape, threads())
    return out


@torch.library.custom_op("decaybench::prelu_backward", mutates_args=())
def _prelu_backward(grad: Tensor, s: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    compiled = native.usable(s)
    if compiled is None:
        left = s <= 0
        a = slope.reshape(1, -1, *[1] * (s.ndim - 2))
        return torch.where(left, a * grad, grad), (left * s * grad).sum([0, *range(2, s.ndim)])
    dense, shape = layout(s)
    up = grad if grad.stride() == dense.stride() else torch.empty_like(dense).copy_(grad)
    slope = slope.contiguous()
    down, to_slope = torch.empty_like(dense), torch.empty_like(slope)
    tensors = (pointer(t) for t in (up, dense, slope, down, to_slope))
    compiled.prelu_backward(*tensors, *shape, threads())
    return down, to_slope


@_prelu.register_fake
def _(s: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(s)


@_prelu_backward.register_fake
def _(grad: Tensor, s: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(s), torch.empty_like(slope, memory_format=torch.contiguous_format)


class _Function(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, slope: Tensor) -> Tensor:
        return _prelu(s, slope)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, slope = ctx.saved_tensors
        return _Backward.apply(grad, s, slope)


class _Backward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, s: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        return _prelu_backward(grad, s, slope)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, down: Tensor, to_slope: Tensor) -> tuple[Tensor, ...]:
        grad, s, slope = ctx.saved_tensors
        shape = (1, -1, *[1] * (s.ndim - 2))
        left, a, b = s <= 0, slope.reshape(shape), to_slope.reshape(shape)
        d_grad = torch.where(left, a * down + b * s, down)
        return d_grad, left * grad * b, (left * grad * down).sum([0, *range(2, s.ndim)])


@_prelu.register_vmap
def _(info: Any, dims: tuple[int | None, ...], s: Tensor, slope: Tensor) -> tuple[Tensor, int]:
    B = info.batch_size
    return split(_prelu(merged(s, dims[0], B, 1), merged(slope, dims[1], B, 0)), B, 1), 1


@_prelu_backward.register_vmap
def _(info: Any, dims: tuple[int | None, ...], grad: Tensor, s: Tensor, slope: Tensor) -> Any:
    B = info.batch_size
    down, to_slope = _prelu_backward(
        merged(grad, dims[0], B, 1), merged(s, dims[1], B, 1), merged(slope, dims[2], B, 0)
    )
    return (split(down, B, 1), split(to_slope, B, 0)), (1, 0)
