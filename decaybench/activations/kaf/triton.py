"""Launches the Triton kernels of a KAF, without synchronization and without atomic adds.

f and f′ are looked up as on the CPU. The gradient of α is summed atom by atom, in registers, since a histogram would
need atomic adds: its time grows with D where D is large.
"""

import importlib.util
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from decaybench.activations.kaf.piecewise import ROW, Pieces

BLOCK = 1024  # numbers of a program
CELLS = 64  # of the table, of a program
LANES = 128, 512  # numbers that a program of the backward pass looks at together, at least and at most
RUN = 32  # of them, at least so many that lie in one piece where channels are short
CHUNKS = 8  # of four atoms, at most, of a program of the backward pass
PROGRAMS = 1024  # of the backward pass; the same on every GPU, so that the sums are
LONGEST_REASON = 200  # characters of what Triton says; a compiler's errors fill pages
Shape = tuple[int, int, int]  # outer, C, inner: how a tensor lies in memory
DEVICES = ("cuda",)  # tests add the CPU, for Triton's interpreter


def usable(s: Tensor) -> bool:
    """Tells whether the kernels can take a tensor."""
    return s.device.type in DEVICES and s.dtype in (torch.float32, torch.float64) and works(s.device)


def works(device: torch.device) -> bool:
    """Tells whether Triton is installed and can build a kernel; otherwise torch's own operations are used."""
    return not hindrance(device)


@lru_cache(maxsize=16)
def hindrance(device: torch.device) -> str:
    """Says why Triton cannot build a kernel for a device; empty where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from decaybench.activations.kaf.piecewise import pieces

        small, found = torch.zeros(1, 1, device=device), pieces("relu", 0.0, 2, 1.0, True)
        assert found is not None
        known = (small, (1, 1, 1), torch.zeros(1, 2, device=device), "relu", 0.0, 1.0, found)
        forward(*known)
        backward(small, *known)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, no driver, a GPU that is too old: whatever Triton says
        return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
    return ""


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    """Returns the least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


@lru_cache(maxsize=64)
def _constants(
    p: Pieces, name: str, precision: float, boundary: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Puts on the device what a kernel reads: grid, basis (K, W, ROW), first (K,), centre (K,), tail."""
    delta = 2 * boundary / (p.D - 1)
    root = math.sqrt(precision / math.log(2)) if name == "gaussian" else 1.0  # of the exponent, as one of 2
    grid = torch.tensor([p.low, p.high, p.scale, p.inverse, precision, -boundary, delta, root], dtype=dtype)
    doubles = (torch.from_numpy(p.basis), torch.from_numpy(p.centre), torch.tensor([p.tail], dtype=torch.float64))
    basis, centre, tail = (t.contiguous().to(device) for t in doubles)
    return grid.to(device), basis, torch.from_numpy(p.first).to(device), centre, tail


def _table(alpha: Tensor, p: Pieces, constants: tuple[Tensor, ...]) -> Tensor:
    """Computes the rows of every channel, (ROW + 1, C·K)."""
    from decaybench.activations.kaf import triton_kernels

    C, D = alpha.shape
    cells = C * p.count
    _, basis, first, centre, tail = constants
    table = alpha.new_empty(ROW + 1, cells)
    numbers = (cells, p.count, D, p.basis.shape[1])
    tensors = (alpha, basis, first, centre, table)
    launch(triton_kernels.build, (_cdiv(cells, CELLS),), *tensors, *numbers, tail, p.tail != 0.0, CELLS)
    return table


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
    """Starts a kernel on the device of its first argument, unless the grid is empty."""
    if all(grid):
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            kernel[grid](*arguments)


def forward(s: Tensor, shape: Shape, alpha: Tensor, name: str, precision: float, boundary: float, p: Pieces) -> Tensor:
    """Computes the sum, (N, C, …); NaN and ±Inf give what the definition gives."""
    from decaybench.activations.kaf import triton_kernels

    constants = _constants(p, name, precision, boundary, s.dtype, s.device)
    _, C, inner = shape
    out, alpha = torch.empty_like(s), alpha.contiguous()
    table, size = _table(alpha, p, constants), s.numel()
    numbers = (size, C, inner, p.count, p.D)
    launch(
        triton_kernels.forward,
        (_cdiv(size, BLOCK),),
        s,
        alpha,
        table,
        out,
        constants[0],
        *numbers,
        name,
        size + BLOCK >= 1 << 31,
        BLOCK,
    )
    return out


def backward(
    grad: Tensor, s: Tensor, shape: Shape, alpha: Tensor, name: str, precision: float, boundary: float, p: Pieces
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of s (N, C, …) and of α (C, D), the same bits every time."""
    from decaybench.activations.kaf import triton_kernels

    constants = _constants(p, name, precision, boundary, s.dtype, s.device)
    outer, C, inner = shape
    alpha, down = alpha.contiguous(), torch.empty_like(s)
    if not s.numel():
        return down, torch.zeros_like(alpha)
    lanes = min(max(_power(outer * inner), LANES[0]), LANES[1])
    run = min(_power(inner), lanes)  # I
    group = min(_power(C), max(1, RUN // run))  # G
    steps = _cdiv(outer, lanes // (group * run)) * _cdiv(inner, run)
    fours = _cdiv(p.D, 4)
    blocks, columns = _cdiv(C, group), _cdiv(fours, CHUNKS)
    chunks = _cdiv(fours, columns)
    shares = min(steps, max(1, PROGRAMS // (blocks * columns)))
    each = _cdiv(steps, shares)
    parts = alpha.new_empty(_cdiv(steps, each), C, p.D)
    numbers = (outer, C, inner, p.count, p.D, each)
    launch(
        triton_kernels.backward,
        (blocks, len(parts), columns),
        *(grad, s, alpha, _table(alpha, p, constants), down, parts, constants[0]),
        *numbers,
        *(name, lanes, group, run, chunks, inner % 4 == 0 and run % 4 == 0),
    )
    return down, parts.sum(0)
