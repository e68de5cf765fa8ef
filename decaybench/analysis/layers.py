"""What a cell learned in each of its activation layers."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from decaybench.analysis.cells import Cell
from decaybench.analysis.frame import Row, alpha_columns


def layer_rows(cell: Cell) -> Iterator[Row]:
    """Yields one row per activation layer of a cell, over its seeds."""
    for index, first in enumerate(cell.layers[0] if cell.layers else ()):
        layers = cell.layer(index)
        yield {
            "layer": first.name,
            **alpha_columns(cell.alphas(index)),
            "distance_from_start": mean_of(layer.distance_from_start for layer in layers),
            "distance_from_zero": mean_of(layer.distance_from_zero for layer in layers),
            "distance_from_relu": mean_of(layer.distance_from_relu for layer in layers),
            "share_of_norm": mean_of(share_of_norm(layer.final) for layer in layers),
        }


def share_of_norm(alphas: npt.NDArray[Any]) -> float | None:
    """Returns the share of parameters that carry 95% of the sum of squares: small where few of them matter."""
    squares = np.sort(np.square(alphas.astype(np.float64)))[::-1]
    total = squares.sum()
    if not len(alphas) or not np.isfinite(total) or total == 0:
        return None
    return float(np.searchsorted(np.cumsum(squares), 0.95 * total) + 1) / len(alphas)


def distances(cell: Cell) -> tuple[float | None, float | None]:
    """Returns how far the learned functions are from their start and from zero, mean over layers and seeds."""
    layers = [layer for layers in cell.layers for layer in layers]
    return mean_of(e.distance_from_start for e in layers), mean_of(e.distance_from_zero for e in layers)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are known, None where there is none."""
    known = [v for v in values if v is not None and v == v]
    return float(np.mean(known)) if known else None
