"""Convolutions of R networks at once: compiled on a CPU; on a GPU the faster of two methods is found by measurement."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench.training.stacked import compiled
from decaybench.training.stacked.compiled import Pair

Way = Callable[[Tensor, Tensor, Tensor | None, Pair, Pair], Tensor]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """Convolves x (R, C, H, W, B) with weight (R, O, C, k, l) and bias (R, O) to (R, O, h, w, B).

    On a CPU nothing is chosen by measurement, so that a run's bits depend on none: it is the compiled one, or without
    a compiler `unfolded`.
    """
    if compiled.usable(x) is not None:
        return compiled.convolve(x, weight, bias, stride, padding)
    if x.device.type != "cuda":
        return unfolded(x, weight, bias, stride, padding)
    needed = (torch.is_grad_enabled(), x.requires_grad, torch.backends.cuda.matmul.fp32_precision)
    way = fastest(x.device, x.dtype, x.shape, weight.shape, stride, padding, needed)
    return way(x, weight, bias, stride, padding)


def unfolded(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """Convolves by one batched matrix product, whose columns are copied in runs of B numbers."""
    out: Tensor = _Unfolded.apply(x, weight, bias, stride, padding)
    return out


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """Convolves by the library's grouped convolution, a group for each network."""
    R = len(x)
    images = x.permute(4, 0, 1, 2, 3).flatten(1, 2)  # (B, R·C, H, W)
    flat = None if bias is None else bias.flatten()
    out = F.conv2d(images, weight.flatten(0, 1), flat, stride, padding, groups=R)  # (B, R·O, h, w)
    return out.reshape(len(out), R, -1, *out.shape[2:]).permute(1, 2, 3, 4, 0).contiguous()


@lru_cache(maxsize=256)
def fastest(
    device: torch.device,
    dtype: torch.dtype,
    x: torch.Size,
    weight: torch.Size,
    stride: Pair,
    padding: Pair,
    needed: tuple[bool, bool, str] = (True, True, ""),
) -> Way:
    """Returns the faster method for these shapes on this device.

    Args:
        device: The device to measure.
        dtype: Type of x and weight.
        x: Shape of the input.
        weight: Shape of the weight.
        stride: As in `convolve`.
        padding: As in `convolve`.
        needed: Whether gradients are needed at all, and that of x; and in what products are computed.
    """
    learning, back, _ = needed
    with torch.set_grad_enabled(learning):
        inputs = torch.ones(x, device=device, dtype=dtype, requires_grad=learning and back)
        weights = torch.ones(weight, device=device, dtype=dtype, requires_grad=learning)
        seconds = {way: _seconds(way, inputs, weights, stride, padding) for way in (unfolded, grouped)}
    return min(seconds, key=lambda way: seconds[way])


def _seconds(way: Way, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> float:
    """Returns the least of three times, after a warm-up; infinite where the method does not work."""
    times, wanted = [], [t for t in (x, weight) if t.requires_grad]
    try:
        for _ in range(4):
            start = _now(x.device)
            out = way(x, weight, None, stride, padding)
            if wanted:
                torch.autograd.grad(out.sum(), wanted)
            times.append(_now(x.device) - start)
    except RuntimeError:  # too many groups, too little memory: the other way may do
        return float("inf")
    return min(times[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Unfolded(torch.autograd.Function):
    """A convolution by unfolding, which keeps the columns for the gradient of the weight."""

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
    """Views the windows of x (R, C, H, W, B) as (R, C, k, l, h, w, B)."""
    (R, C, H, W, B), (r, c, i, j, b) = x.shape, x.stride()
    (k, ll), (m, n) = kernel, stride
    size = (R, C, k, ll, (H - k) // m + 1, (W - ll) // n + 1, B)
    return x.as_strided(size, (r, c, i, j, i * m, j * n, b), x.storage_offset())


def _folded(windows: Tensor, shape: torch.Size, stride: Pair, padding: Pair) -> Tensor:
    """Sums windows (R, C, k, l, h, w, B) back to an image (R, C, H, W, B)."""
    R, C, H, W, B = shape
    k, ll, h, w = windows.shape[2:6]
    image = windows.new_zeros(R, C, H + 2 * padding[0], W + 2 * padding[1], B)
    if (h, w) == (1, 1):  # one window, of which no two numbers meet
        image[:, :, :k, :ll].copy_(windows[:, :, :, :, 0, 0])
    else:
        for i in range(k):
            for j in range(ll):
                part = image[:, :, i : i + h * stride[0] : stride[0], j : j + w * stride[1] : stride[1]]
                part.add_(windows[:, :, i, j])
    return image[:, :, padding[0] : padding[0] + H, padding[1] : padding[1] + W]
