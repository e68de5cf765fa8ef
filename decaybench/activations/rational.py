"""Rational activation functions (Padé activation units)."""

import torch
from torch import Tensor, nn

# Least-squares fits on 601 points of [−3, 3]: the largest error is 0.034 for the leaky ReLU (slope 0.01), at its kink,
# and 1.2e-6 for the SiLU. Numerator a₀ … a₅, denominator b₁ … b₄.
FITS = {
    "leaky-relu": (
        (0.03358261, 0.5050001, 1.651316, 2.004518, 0.9279363, 0.1515374),
        (1.2004e-06, 3.96934, 7.9243e-07, 0.300074),
    ),
    "silu": (
        (3.294473e-07, 0.5, 0.2499973, 0.05326441, 0.005802205, 0.0002750876),
        (-3.440991e-09, 0.1065288, -3.336353e-10, 0.0005501752),
    ),
}


class Rational(nn.Module):
    """f(s) = Σⱼ aⱼ sʲ / (1 + |Σₖ bₖ sᵏ|), j = 0 … 5, k = 1 … 4, with learned a and b per channel.

    Source: Molina et al. 2020, arXiv 1907.06732, equation 4 (the safe form, which has no poles).
    Decayed to zero, a and b give the zero function.

    Acts on dimension 1: input (N, C) or (N, C, …), output of the same shape.

    Args:
        channels: C, one function for each.
        init: The function that the coefficients approximate at the start: ``leaky-relu`` or ``silu``.

    Raises:
        KeyError: For another ``init``.
    """

    def __init__(self, channels: int, init: str = "leaky-relu") -> None:
        super().__init__()
        numerator, denominator = FITS[init]
        self.numerator = nn.Parameter(torch.tensor(numerator).repeat(channels, 1))  # (C, 6)
        self.denominator = nn.Parameter(torch.tensor(denominator).repeat(channels, 1))  # (C, 4)

    def forward(self, s: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (s.ndim - 2))
        a = [column.reshape(shape) for column in self.numerator.unbind(1)]  # six of (1, C, 1, …)
        b = [column.reshape(shape) for column in self.denominator.unbind(1)]  # four of (1, C, 1, …)
        # Beyond ±1 both polynomials are divided by s⁴, so that nothing overflows.
        near = s.abs() <= 1
        u = torch.where(near, s, 1.0)
        z = 1 / torch.where(near, 1.0, s)
        inside = _horner(a, u) / (1 + (u * _horner(b, u)).abs())
        outside = s * _horner(a[::-1], z) / (z**4 + _horner(b[::-1], z).abs())
        return torch.where(near, inside, outside)


def _horner(coefficients: list[Tensor], x: Tensor) -> Tensor:
    """Evaluates Σⱼ cⱼ xʲ for coefficients (1, C, 1, …) at x (N, C, …)."""
    *rest, value = coefficients
    for c in reversed(rest):
        value = value * x + c
    return value
