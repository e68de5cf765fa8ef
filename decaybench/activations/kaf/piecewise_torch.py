"""The pieces in torch's own operations: for machines without a compiler, calls too small for one, and other devices."""

from collections.abc import Iterator

import torch
from torch import Tensor

from decaybench.activations.float64 import device_with_float64
from decaybench.activations.kaf.piecewise import ROW, Pieces
from decaybench.activations.kaf.reference import per_channel

TILE = 1 << 16  # numbers at a time: what is in between stays in the cache and needs no memory of the input's size


def _table(alpha: Tensor, p: Pieces) -> Tensor:
    """Computes the rows of every channel, (ROW, C·K), one contiguous line for each coefficient."""
    C, D = alpha.shape
    where = device_with_float64(alpha.device)
    basis = torch.from_numpy(p.dense).reshape(D, -1).to(where)  # (D, K·ROW)
    rows = (alpha.to(where).double() @ basis).reshape(C, p.count, ROW)
    rows[:, :, 0] = torch.from_numpy(p.centre).to(where)
    return rows.permute(2, 0, 1).reshape(ROW, -1).to(alpha.dtype).to(alpha.device)


def _places(s: Tensor, p: Pieces) -> tuple[Tensor, Tensor]:
    """Clamps s to the pieces and finds the row of each number in the table; both (N, C, …)."""
    x = s.clamp(p.low, p.high)
    k = ((x - p.low) * p.scale).long().clamp_(max=p.count - 1)
    channel = torch.arange(s.shape[1], device=s.device).reshape(1, -1, *[1] * (s.ndim - 2))
    return x, k + channel * p.count


def _tiles(s: Tensor) -> Iterator[slice]:
    step = max(1, TILE // max(1, s[:1].numel()))
    return (slice(i, i + step) for i in range(0, len(s), step))


def _tail(alpha: Tensor, p: Pieces, ndim: int) -> Tensor:
    """Computes the slope right of the pieces, (1, C, 1, …)."""
    return (p.tail * alpha.sum(1)).reshape(1, -1, *[1] * (ndim - 2))


def forward(s: Tensor, alpha: Tensor, p: Pieces) -> Tensor:
    """Computes the sum, (N, C, …), for finite s."""
    table, out = _table(alpha, p), torch.empty_like(s)
    for tile in _tiles(s):
        x, place = _places(s[tile], p)
        u = (x - table[0].take(place)).mul_(p.inverse)
        value = table[ROW - 1].take(place)
        for j in range(ROW - 2, 0, -1):
            value = value.mul_(u).add_(table[j].take(place))
        if p.tail:
            value += (s[tile] - p.high).clamp(min=0) * _tail(alpha, p, s.ndim)
        out[tile] = value
    return out


def backward(grad: Tensor, s: Tensor, alpha: Tensor, p: Pieces) -> tuple[Tensor, Tensor | None]:
    """Computes the gradients of s (N, C, …) and of α (C, D), for finite s.

    That of α only on the CPU, where ``bincount`` adds in order, the same bits every time; elsewhere None.
    """
    C, cells = len(alpha), len(alpha) * p.count
    table, down = _table(alpha, p), torch.empty_like(s)
    counted = s.device.type == "cpu"
    moments = torch.zeros(ROW, cells, dtype=torch.float64)  # Σ grad·uʲ⁻¹ in slot j
    beyond = torch.zeros(C, dtype=torch.float64)
    for tile in _tiles(s):
        x, place = _places(s[tile], p)
        u = (x - table[0].take(place)).mul_(p.inverse)
        slope = (ROW - 2) * table[ROW - 1].take(place)
        for j in range(ROW - 3, 0, -1):
            slope = slope.mul_(u).add_(table[j + 1].take(place), alpha=j)
        slope = torch.where(s[tile] > p.high, _tail(alpha, p, s.ndim), slope.mul_(p.inverse))
        down[tile] = grad[tile] * slope.masked_fill_(s[tile] < p.low, 0.0)
        power, flat = grad[tile].clone(), place.flatten()
        for j in range(1, ROW if counted else 0):
            moments[j] += torch.bincount(flat, power.flatten(), cells)
            power *= u
        if p.tail and counted:
            beyond += per_channel(grad[tile].double() * (s[tile] - p.high).clamp(min=0))
    if not counted:
        return down, None
    basis = torch.from_numpy(p.dense).permute(2, 1, 0).reshape(-1, p.D)  # (ROW·K, D)
    total = moments.reshape(ROW, C, p.count).permute(1, 0, 2).reshape(C, -1) @ basis
    return down, (total + p.tail * beyond[:, None]).to(alpha.dtype)
