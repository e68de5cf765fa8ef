"""A channel's function as polynomials on equal pieces of the line.

f(s) = Σᵢ αᵢ κ(s − dᵢ) is one smooth function of one variable for each channel. On a piece half as wide as κ resolves, a
polynomial of degree 6 is exact to float32's rounding, so that the cost of f no longer depends on D: look the piece up,
evaluate its polynomial. The relu kernel is linear between its atoms, and its pieces are exact. The gradient of α is
linear in the moments Σ grad·uʲ of each piece, a histogram: no (…, D) tensor there, either, and no atomic adds.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

from decaybench.activations.kaf.basis_kernels import kernel

Floats = npt.NDArray[np.float64]
ROW = 8  # a row of a table: the piece's centre, then its coefficients
DEGREE = ROW - 2
MAX_PIECES = 1 << 13  # pieces; beyond (a kernel far narrower than the atoms are apart) f is summed atom by atom


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces for one dictionary and one type of number.

    Attributes:
        D: Number of atoms.
        low, high: Where they begin and end. To the left f is 0, to the right a straight line of slope tail·Σα.
        scale: Pieces per unit of s.
        inverse: u = (s − centre)·inverse is −1 … 1 on a piece.
        tail: κ′ far to the right.
        centre: (K,), rounded to the type of the numbers, so that s − centre is exact.
        first: (K,), the first of the W atoms that act on a piece.
        basis: (K, W, ROW), what each atom adds to the row of the piece for α = 1; slot 0 is empty.
    """

    D: int
    low: float
    high: float
    scale: float
    inverse: float
    tail: float
    centre: Floats
    first: npt.NDArray[np.int32]
    basis: Floats

    @property
    def count(self) -> int:
        return len(self.centre)

    @cached_property
    def dense(self) -> Floats:
        """The basis for all atoms, (D, K, ROW)."""
        K, W, _ = self.basis.shape
        full = np.zeros((self.D, K, ROW))
        full[self.first[:, None] + np.arange(W), np.arange(K)[:, None]] = self.basis
        return full


@lru_cache(maxsize=64)
def pieces(name: str, precision: float, D: int, boundary: float, single: bool) -> Pieces | None:
    """Computes the pieces of a kernel on D atoms from −boundary to boundary; None where they are too many.

    Args:
        name: Name of the kernel.
        precision: γ of the Gaussian.
        D: Number of atoms.
        boundary: The last atom, in units of s.
        single: Whether the pieces are for float32, otherwise for float64.
    """
    k = kernel(name, precision)
    atoms = np.linspace(-boundary, boundary, D)
    delta = 2 * boundary / (D - 1)
    reach = k.reach(1e-11 if single else 1e-17)
    width = delta if k.smooth is None else k.smooth / (2 if single else 24)
    low = -boundary - reach
    K = round(2 * boundary / width) if k.smooth is None else int(np.ceil(2 * (boundary + reach) / width))
    K = max(K, 1)
    if K > MAX_PIECES:
        return None
    number = np.float32 if single else np.float64
    centre = (low + (np.arange(K) + 0.5) * width).astype(number).astype(np.float64)
    inverse = float(number(2 / width))
    local = k.tail == 0.0
    W = min(D, int(np.ceil((width + 2 * reach) / delta)) + 1) if local else D
    leftmost = np.ceil((centre - width / 2 - reach - atoms[0]) / delta).clip(0, D - W) if local else np.zeros(K)
    first = leftmost.astype(np.int32)
    degree = DEGREE if k.smooth is not None else 1
    nodes = np.cos((np.arange(degree + 1) + 0.5) * np.pi / (degree + 1))  # Chebyshev's
    x = (centre[:, None] + nodes / inverse)[:, None, :] - atoms[first[:, None] + np.arange(W)][:, :, None]  # (K, W, 7)
    values = k.value(torch.from_numpy(x)).numpy()
    basis = np.zeros((K, W, ROW))
    basis[:, :, 1 : degree + 2] = values @ np.linalg.inv(np.vander(nodes, degree + 1, increasing=True)).T
    return Pieces(D, low, low + K * width, 1 / width, inverse, k.tail, centre, first, basis)
