"""Compiled convolutions and poolings of R networks at once on a CPU, of images (R, C, H, W, B)."""

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from decaybench import native

Pair = tuple[int, int]
FEW_CHANNELS = 6  # with fewer, a padded copy costs less than taps that each have a border of their own
MAX_TAPS = 255  # of a pooling's kernel: a byte says which one


_STEPS = ("sy", "sx", "py", "px")  # strides and paddings, down and across


class _Sizes(ctypes.Structure):
    """Sizes of a convolution as convolution.c reads them."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("C", "H", "W", "O", "k", "l", "h", "w", "B", *_STEPS))


class _Windows(ctypes.Structure):
    """Sizes of a pooling as pooling.c reads them."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("H", "W", "h", "w", "B", "k", "l", *_STEPS))


@lru_cache(maxsize=2)
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Returns the compiled layers for a type of numbers; None without a compiler."""
    files = ("convolution.c", "pooling.c")
    return native.compiled(Path(__file__).with_name("c"), files, dtype, _declare)


def _declare(made: ctypes.CDLL) -> None:
    pointers = {"convolve": 4, "convolve_to_x": 3, "convolve_to_weight": 4, "pool": 3, "pool_to_x": 3}
    for name, tensors in pointers.items():
        function = getattr(made, name)
        function.argtypes = [*[ctypes.c_void_p] * (tensors + 1), ctypes.c_long]  # tensors, sizes, how many
        function.restype = None


def usable(x: Tensor) -> ctypes.CDLL | None:
    """Returns the library for a tensor that is on the CPU, otherwise None."""
    return library(x.dtype) if x.device.type == "cpu" else None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """Convolves x (R, C, H, W, B) with weight (R, O, C, k, l) and bias (R, O) to (R, O, h, w, B)."""
    if x.shape[1] < FEW_CHANNELS and any(padding):
        x, padding = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0])), (0, 0)
    out: Tensor = _Convolution.apply(x.contiguous(), weight, bias, stride, padding)
    return out


def max_pool(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Takes the maxima of windows of x (R, C, H, W, B), as (R, C, h, w, B)."""
    out: Tensor = _MaxPool.apply(x.contiguous(), kernel, stride, padding)
    return out


def _call(function: Any, sizes: ctypes.Structure, count: int, *tensors: Tensor | None) -> None:
    function(*(None if t is None else t.data_ptr() for t in tensors), ctypes.byref(sizes), count)


def _extent(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> list[int]:
    """Returns (h, w), the number of places of a window along each axis."""
    return [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]


class _Convolution(torch.autograd.Function):
    """A direct convolution, which keeps only its input for the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        (R, C, H, W, B), (out_channels, _, k, ll) = x.shape, weight.shape[1:]
        h, w = _extent((H, W), (k, ll), stride, padding)
        ctx.sizes = _Sizes(C, H, W, out_channels, k, ll, h, w, B, *stride, *padding)
        weight = weight.contiguous()
        ctx.save_for_backward(x, weight)
        out = x.new_empty(R, out_channels, h, w, B)
        _call(library(x.dtype).convolve, ctx.sizes, R, x, weight, _contiguous(bias), out)  # type: ignore[union-attr]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, made, R = grad.contiguous(), library(x.dtype), len(x)
        assert made is not None
        to_x, to_bias = None, None
        to_weight = torch.empty_like(weight)
        if ctx.needs_input_grad[2]:
            to_bias = weight.new_empty(weight.shape[:2])
        _call(made.convolve_to_weight, ctx.sizes, R, grad, x, to_weight, to_bias)
        if ctx.needs_input_grad[0]:
            to_x = torch.empty_like(x)
            _call(made.convolve_to_x, ctx.sizes, R, grad, weight, to_x)
        return to_x, to_weight, to_bias, None, None


class _MaxPool(torch.autograd.Function):
    """Max pooling that remembers in a byte where each maximum came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
        R, C, H, W, B = x.shape
        h, w = _extent((H, W), kernel, stride, padding)
        ctx.sizes, ctx.shape = _Windows(H, W, h, w, B, *kernel, *stride, *padding), x.shape
        out, tap = x.new_empty(R, C, h, w, B), x.new_empty((R, C, h, w, B), dtype=torch.uint8)
        _call(library(x.dtype).pool, ctx.sizes, R * C, x, out, tap)  # type: ignore[union-attr]
        ctx.save_for_backward(tap)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (tap,) = ctx.saved_tensors
        to_x = grad.new_empty(ctx.shape)
        made = library(grad.dtype)
        assert made is not None
        _call(made.pool_to_x, ctx.sizes, ctx.shape[0] * ctx.shape[1], grad.contiguous(), tap, to_x)
        return to_x, None, None, None


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
