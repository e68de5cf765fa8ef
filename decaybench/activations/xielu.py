"""xIELU: an expanded integral of the ELU, with two learned curvatures for all channels."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = -1e-6  # exp is taken of min(s, this), as in the authors' code


class XIELU(nn.Module):
    """p·s² + β·s where s > 0, otherwise n·(eˢ − 1 − s) + β·s, with p = softplus(alpha_p), n = β + softplus(alpha_n).

    What is stored is the inverse of softplus, so that weight decay pulls p to ln 2 and n to β + ln 2, not to 0.
    It grows as s²: eight layers without normalization overflow, so give ``vgg`` its norm (``vgg,norm=true``).

    Source: Huang et al. 2024, arXiv 2411.13010; the initial values are theirs.

    Args:
        channels: Not needed, every channel has the same function.
        p: Initial value of p.
        n: Initial value of n, above β.
        beta: The slope at 0, which is not learned.

    Raises:
        ValueError: When p is not above 0 or n not above β.
    """

    def __init__(self, channels: int, p: float = 0.8, n: float = 0.8, beta: float = 0.5) -> None:
        super().__init__()
        if p <= 0 or n <= beta:
            raise ValueError(f"p = {p} must be above 0 and n = {n} above beta = {beta}")
        self.beta = beta
        self.alpha_p = nn.Parameter(torch.tensor([math.log(math.expm1(p))]))  # (1,)
        self.alpha_n = nn.Parameter(torch.tensor([math.log(math.expm1(n - beta))]))  # (1,)

    def forward(self, s: Tensor) -> Tensor:
        p, n = F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n)
        left = n * (torch.expm1(s.clamp(max=SMALL)) - s)
        return torch.where(s > 0, p * s * s, left) + self.beta * s
