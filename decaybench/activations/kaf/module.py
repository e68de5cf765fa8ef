"""Kernel activation functions: one learned function per channel."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decaybench.activations.kaf.basis_kernels import kernel as named
from decaybench.activations.kaf.functional import atoms, kaf

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
        delta = 2 * boundary / (D - 1)
        self.D, self.boundary, self.kernel, self.precision = D, boundary, kernel, gamma / delta**2
        self.init, self.std, self.epsilon = init, std, epsilon
        self.alpha = nn.Parameter(torch.empty(channels, D))  # (C, D)
        self.reset_parameters()

    @property
    def atoms(self) -> list[float]:
        """The dictionary d, D values, in units of the input."""
        return atoms(self.D, self.boundary)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes α again, as the constructor did."""
        if self.init == "random":
            self.alpha.normal_(std=self.std)
            return
        if self.kernel == "relu":
            raise ValueError("the relu kernel's matrix is singular, no ridge fit is possible: use init='random'")
        d = torch.tensor(self.atoms, dtype=torch.float64)
        K = named(self.kernel, self.precision).value(d[:, None] - d[None, :])  # (D, D)
        fit = torch.linalg.solve(K + self.epsilon * torch.eye(len(d), dtype=d.dtype), TARGETS[self.init](d))
        self.alpha.copy_(fit.expand_as(self.alpha))

    def forward(self, s: Tensor) -> Tensor:
        if s.ndim < 2 or s.shape[1] != len(self.alpha):
            raise ValueError(f"KAF({len(self.alpha)}) takes (N, {len(self.alpha)}, …), not {tuple(s.shape)}")
        wide = torch.promote_types(s.dtype, torch.float32)  # half precision is for storing, not for summing
        alpha = self.alpha.to(wide)
        return kaf(s.to(wide), alpha, self.kernel, self.precision, self.boundary).to(s.dtype)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{len(self.alpha)}, D={self.D}, boundary={self.boundary}, kernel={self.kernel!r}, init={self.init!r}"


def plain(s: Tensor, alpha: Tensor, d: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Computes the definition with its (…, D) tensor, for reading and checking.

    Args:
        s: (N, C, …).
        alpha: (C, D).
        d: (D,), the atoms.
        kernel: κ of s − d.
    """
    kappa = kernel(s[..., None] - d)  # (N, C, …, D)
    return (kappa * alpha.reshape(1, alpha.shape[0], *[1] * (s.ndim - 2), -1)).sum(-1)
