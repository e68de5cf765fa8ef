"""The layers of R networks at once. Images are (R, C, H, W, B): the batch comes last.

So a convolution reads B numbers in a row at each tap of its kernel, `nn.Flatten` and the dense layers need no copy at
all, and each channel of each replica lies in one piece, which the learned activations like best.
A replica's numbers are the same bits whatever trains beside it: nothing is summed over replicas.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decaybench.training.stacked import compiled
from decaybench.training.stacked.compiled import Pair
from decaybench.training.stacked.convolution import convolve

Parameters = dict[str, Tensor]  # of one layer, and its buffers, each (R, …)


def _conv2d(layer: nn.Conv2d, p: Parameters, x: Tensor) -> Tensor:
    x, weight, bias = _lowered(x, p["weight"], p.get("bias"))
    return convolve(x, weight, bias, _pair(layer.stride), _pair(layer.padding))


def _lowered(x: Tensor, *others: Tensor | None) -> Any:
    """Casts tensors as autocast would, which does not look into custom functions."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x, *others
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(None if t is None else t.to(dtype) for t in (x, *others))


def _linear(layer: nn.Linear, p: Parameters, x: Tensor) -> Tensor:
    """Maps x (R, F, B) to (R, O, B)."""
    return p["weight"] @ x if "bias" not in p else torch.baddbmm(p["bias"][:, :, None], p["weight"], x)


def _max_pool(layer: nn.MaxPool2d, parameters: Parameters, x: Tensor) -> Tensor:
    k, s, p = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding)
    if compiled.usable(x) is not None and k[0] * k[1] <= compiled.MAX_TAPS:
        return compiled.max_pool(x, k, s, p)
    return F.max_pool3d(x, (*k, 1), (*s, 1), (*p, 0))


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _flatten(layer: nn.Flatten, p: Parameters, x: Tensor) -> Tensor:
    return x.flatten(1, -2)


def _average(layer: nn.AdaptiveAvgPool2d, p: Parameters, x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, p: Parameters, x: Tensor) -> Tensor:
    """Normalizes each channel of each replica of x (R, C, …, B)."""
    if layer.training:
        p["num_batches_tracked"].add_(1)
    mean, var, weight, bias = (p[name].flatten(0, 1) for name in ("running_mean", "running_var", "weight", "bias"))
    flat = x.flatten(0, 1)[None]  # (1, R·C, …, B)
    out = F.batch_norm(flat, mean, var, weight, bias, layer.training, layer.momentum or 0.0, layer.eps)
    return out.view(x.shape)


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
    nn.BatchNorm1d: (_batch_norm, lambda m: m.affine and m.track_running_stats and m.momentum is not None),
    nn.BatchNorm2d: (_batch_norm, lambda m: m.affine and m.track_running_stats and m.momentum is not None),
    nn.ReLU: (_elementwise, lambda m: not m.inplace),
    nn.LeakyReLU: (_elementwise, lambda m: not m.inplace),
}
