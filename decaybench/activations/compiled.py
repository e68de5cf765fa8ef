"""Calls the compiled activations, or says that there are none: everything takes torch's path then."""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decaybench import native
from decaybench.activations.kaf.piecewise import Pieces

# Calls for fewer numbers than this never start a compiler. It depends on the call alone, not on what was compiled
# before, so that a run gives the same bits whatever ran before it.
MIN_COMPILED_SIZE = 4096


class Grid(ctypes.Structure):
    """The `Pieces` of a dictionary in the layout that kaf.c reads."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("pieces", "width", "D")),
        *((name, ctypes.c_double) for name in ("low", "high", "scale", "inverse", "tail")),
        *((name, ctypes.c_void_p) for name in ("centre", "first", "basis", "turned")),
    )

    def __init__(self, p: Pieces) -> None:
        self._kept = (p.centre, p.first, p.basis, np.ascontiguousarray(p.basis.transpose(0, 2, 1)))
        numbers = (p.count, p.basis.shape[1], p.D, p.low, p.high, p.scale, p.inverse, p.tail)
        super().__init__(*numbers, *(array.ctypes.data for array in self._kept))


@lru_cache(maxsize=2)
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Returns the compiled activations for a type of numbers; None without a compiler."""
    return native.compiled(Path(__file__).with_name("c"), ("kaf.c", "prelu.c"), dtype, _declare)


def _declare(made: ctypes.CDLL) -> None:
    """Declares the arguments of the C functions: tensors, (outer, C, inner), the grid of a KAF, threads."""
    for name, tensors in (("kaf_forward", 3), ("kaf_backward", 5), ("prelu_forward", 3), ("prelu_backward", 5)):
        grid = [ctypes.c_void_p] if name.startswith("kaf") else []
        function = getattr(made, name)
        function.argtypes = [*[ctypes.c_void_p] * tensors, *[ctypes.c_long] * 3, *grid, ctypes.c_int]
        function.restype = ctypes.c_int if grid else None


_any_size = False


@contextmanager
def any_size() -> Iterator[None]:
    """Uses the compiled code for small inputs as well, so that a run's bits do not depend on what trains beside it."""
    global _any_size
    before, _any_size = _any_size, True
    try:
        yield
    finally:
        _any_size = before


def large_enough(s: Tensor) -> bool:
    """Tells whether a tensor is large enough to start a compiler for."""
    return s.numel() >= (1 if _any_size else max(MIN_COMPILED_SIZE, 1))


def usable(s: Tensor) -> ctypes.CDLL | None:
    """Returns the library for a tensor that is on the CPU and large enough, otherwise None."""
    return library(s.dtype) if s.device.type == "cpu" and large_enough(s) else None


def layout(s: Tensor, *others: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Returns a tensor (N, C, …) without gaps in memory, and its layout there as (outer, C, inner).

    Raises:
        RuntimeError: When another tensor is on another device, whose memory we would otherwise read as if it were here.
    """
    for other in others:
        if other.device != s.device:
            raise RuntimeError(f"the input is on {s.device}, the activation's parameters on {other.device}")
    n, c, *more = s.shape
    rest = math.prod(more)
    if s.is_contiguous():
        return s, (n, c, rest)
    if s.movedim(0, -1).is_contiguous():
        return s, (1, c, n * rest)
    if s.ndim in (4, 5):
        form = torch.channels_last if s.ndim == 4 else torch.channels_last_3d
        if s.is_contiguous(memory_format=form):
            return s, (n * rest, c, 1)
    return s.contiguous(), (n, c, rest)


def call(function: Any, *tensors: Tensor, shape: tuple[int, int, int], grid: Any = None) -> int:
    """Calls a C function with as many threads as torch uses."""
    more = () if grid is None else (grid,)
    found: int = function(*(t.data_ptr() for t in tensors), *shape, *more, torch.get_num_threads())
    return found
