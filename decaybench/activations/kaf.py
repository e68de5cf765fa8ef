"""Kernel activation functions: one learned function per channel."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decaybench.activations.expansion import (
    RELU,
    SOFTPLUS,
    FactoredGaussian,
    UniformGrid,
    WalkAtoms,
    gaussian,
)

TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "identity": lambda s: s,
    "leaky-relu": F.leaky_relu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class KAF(nn.Module):
    """f(s) = Σᵢ αᵢ κ(s, dᵢ) on a fixed uniform dictionary d; only α is learned.

    Source: Scardapane et al. 2017, arXiv 1707.04035, sections 3.1 (the function) and 3.3 (initialization).

    Acts on dimension 1: input (N, C) or (N, C, …), output of the same shape.

    Args:
        channels: C, one function for each.
        D: Number of dictionary atoms.
        boundary: The dictionary runs from −boundary to boundary, in units of the input.
        kernel: ``gaussian`` exp(−γ(s−d)²), ``relu`` max(0, s−d), or ``softplus`` log(1+exp(s−d)).
        gamma: Precision of the Gaussian kernel in units of 1/Δ², Δ the distance of two atoms. The authors'
            code has 1/8, the paper's rule of thumb is 1/6.
        init: ``random``, N(0, std²) as in the authors' code, or the name of a function that α is fitted to by
            kernel ridge regression on the dictionary (section 3.3): (K + εI)⁻¹ f(d).
        std: Standard deviation of the random initialization.
        epsilon: ε of the ridge regression.

    Raises:
        ValueError: For a ridge fit with the relu kernel, whose kernel matrix is singular.
    """

    def __init__(
        self,
        channels: int,
        D: int = 20,
        boundary: float = 4.0,
        kernel: str = "gaussian",
        gamma: float = 0.125,
        init: str = "elu",
        std: float = 0.8,
        epsilon: float = 1e-4,
    ) -> None:
        super().__init__()
        self.grid = UniformGrid(D, boundary, gamma)
        self.kernel = {
            "gaussian": gaussian(gamma / self.grid.delta**2),
            "relu": RELU,
            "softplus": SOFTPLUS,
        }[kernel]
        self.kind, self.init, self.std, self.epsilon = kernel, init, std, epsilon
        self.alpha = nn.Parameter(torch.empty(channels, D))  # (C, D)
        self.reset_parameters()

    @property
    def atoms(self) -> list[float]:
        """The dictionary d, D values, in units of the input."""
        return [j * self.grid.delta for j in self.grid.centred]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes α again, as the constructor did."""
        if self.init == "random":
            self.alpha.normal_(std=self.std)
            return
        if self.kind == "relu":
            raise ValueError("the relu kernel's matrix is singular, no ridge fit is possible: use init='random'")
        d = torch.tensor(self.atoms, dtype=torch.float64)
        K = self.kernel.value(d[:, None] - d[None, :])  # (D, D)
        fit = torch.linalg.solve(K + self.epsilon * torch.eye(len(d), dtype=d.dtype), TARGETS[self.init](d))
        self.alpha.copy_(fit.expand_as(self.alpha))

    def forward(self, s: Tensor) -> Tensor:
        if self.kind == "gaussian" and self.grid.fits(s.dtype):
            return FactoredGaussian.apply(s, self.alpha, self.grid)  # type: ignore[no-any-return]
        return WalkAtoms.apply(s, self.alpha, tuple(self.atoms), self.kernel)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        channels, D = self.alpha.shape
        return f"{channels}, D={D}, boundary={self.grid.boundary}, kernel={self.kind!r}, init={self.init!r}"


def plain(s: Tensor, alpha: Tensor, atoms: Tensor, precision: float) -> Tensor:
    """The definition, for reading and checking: the Gaussian sum with its (…, D) tensor.

    Args:
        s: (N, C, …).
        alpha: (C, D).
        atoms: (D,).
        precision: γ, in 1/s².
    """
    kappa = torch.exp(-precision * (s[..., None] - atoms) ** 2)  # (N, C, …, D)
    return (kappa * alpha.reshape(1, alpha.shape[0], *[1] * (s.ndim - 2), -1)).sum(-1)
