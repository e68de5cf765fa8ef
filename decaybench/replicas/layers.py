"""The layers of R networks at once. Images are (R, C, H, W, B): the batch comes last.

So a convolution is one batched matrix product whose columns are copied in runs of B numbers, `nn.Flatten` and the dense
layers need no copy at all, and each channel of each replica lies in one piece, which the learned activations like best.
A replica's numbers are the same bits whatever trains beside it: nothing is summed over replicas.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[int, int]
Parameters = dict[str, Tensor]  # of one layer, each (R, …)


class _Convolution(torch.autograd.Function):
    """Unfold and multiply; x (R, C, H, W, B), weight (R, O, C, k, l), bias (R, O) to (R, O, h, w, B)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        R, out = weight.shape[:2]
        windows = _windows(_padded(x, padding), weight.shape[-2:], stride)  # (R, C, k, l, h, w, B)
        h, w, B = windows.shape[-3:]
        columns = windows.reshape(R, -1, h * w * B)  # (R, C·k·l, h·w·B)
        ctx.save_for_backward(columns, weight)
        ctx.shapes = x.shape, windows.shape, stride, padding
        flat = weight.flatten(2)  # (R, O, C·k·l)
        product = flat @ columns if bias is None else torch.baddbmm(bias[:, :, None], flat, columns)
        return product.view(R, out, h, w, B)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        columns, weight = ctx.saved_tensors
        shape, windows, stride, padding = ctx.shapes
        R, out = weight.shape[:2]
        grad = grad.reshape(R, out, -1)
        to_weight = (grad @ columns.transpose(1, 2)).view_as(weight)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_columns = (weight.flatten(2).transpose(1, 2) @ grad).view(windows)
            to_x = _folded(to_columns, shape, stride, padding)
        return to_x, to_weight, grad.sum(2) if ctx.needs_input_grad[2] else None, None, None


def _padded(x: Tensor, padding: Pair) -> Tensor:
    return F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0])) if any(padding) else x


def _windows(x: Tensor, kernel: tuple[int, ...], stride: Pair) -> Tensor:
    """The windows of x (R, C, H, W, B) as a view (R, C, k, l, h, w, B)."""
    (R, C, H, W, B), (r, c, i, j, b) = x.shape, x.stride()
    (k, ll), (m, n) = kernel, stride
    size = (R, C, k, ll, (H - k) // m + 1, (W - ll) // n + 1, B)
    return x.as_strided(size, (r, c, i, j, i * m, j * n, b), x.storage_offset())


def _folded(windows: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """The reverse: sums windows (R, C, k, l, h, w, B) back to an image (R, C, H, W, B)."""
    R, C, H, W, B = shape
    k, ll, h, w = windows.shape[2:6]
    image = windows.new_zeros(R, C, H + 2 * padding[0], W + 2 * padding[1], B)
    for i in range(k):
        for j in range(ll):
            image[:, :, i : i + h * stride[0] : stride[0], j : j + w * stride[1] : stride[1]] += windows[:, :, i, j]
    return image[:, :, padding[0] : padding[0] + H, padding[1] : padding[1] + W]


def _conv2d(layer: nn.Conv2d, p: Parameters, x: Tensor) -> Tensor:
    x, weight, bias = _lowered(x, p["weight"], p.get("bias"))
    out: Tensor = _Convolution.apply(x, weight, bias, layer.stride, layer.padding)
    return out


def _lowered(x: Tensor, *others: Tensor | None) -> Any:
    """As autocast would have them, which does not look into a function of our own."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, *others
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(None if t is None else t.to(dtype) for t in (x, *others))


def _linear(layer: nn.Linear, p: Parameters, x: Tensor) -> Tensor:
    """X (R, F, B) to (R, O, B)."""
    return p["weight"] @ x if "bias" not in p else torch.baddbmm(p["bias"][:, :, None], p["weight"], x)


def _max_pool(layer: nn.MaxPool2d, p: Parameters, x: Tensor) -> Tensor:
    k, s = _pair(layer.kernel_size), _pair(layer.stride)
    return F.max_pool3d(x, (*k, 1), (*s, 1), (*_pair(layer.padding), 0))


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _flatten(layer: nn.Flatten, p: Parameters, x: Tensor) -> Tensor:
    return x.flatten(1, -2)


def _average(layer: nn.AdaptiveAvgPool2d, p: Parameters, x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _elementwise(layer: nn.Module, p: Parameters, x: Tensor) -> Tensor:
    out: Tensor = layer(x)
    return out


Apply = Callable[[Any, Parameters, Tensor], Tensor]
# What a layer must be, exactly, for its function here.
LAYERS: dict[type[nn.Module], tuple[Apply, Callable[[Any], bool]]] = {
    nn.Conv2d: (
        _conv2d,
        lambda m: (
            m.groups == 1 and m.dilation == (1, 1) and m.padding_mode == "zeros" and not isinstance(m.padding, str)
        ),
    ),
    nn.Linear: (_linear, lambda m: True),
    nn.MaxPool2d: (_max_pool, lambda m: m.dilation == 1 and not m.ceil_mode and not m.return_indices),
    nn.AdaptiveAvgPool2d: (_average, lambda m: m.output_size in (1, (1, 1))),
    nn.Flatten: (_flatten, lambda m: (m.start_dim, m.end_dim) == (1, -1)),
    nn.ReLU: (_elementwise, lambda m: not m.inplace),
    nn.LeakyReLU: (_elementwise, lambda m: not m.inplace),
}
