"""ReLUs: activations that learn nothing, for comparison, and one that learns nothing but its scale."""

import torch
from torch import Tensor, nn


class GainReLU(nn.Module):
    """g·max(0, s) with one learned gain g per channel, 1 at the start; decayed to 0, it is the zero function.

    A scale that is decayed together with the weights, as KAF's coefficients are, but with no shape to learn.

    Args:
        channels: C of the input (N, C) or (N, C, …).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))  # (C,)

    def forward(self, s: Tensor) -> Tensor:
        return s.relu() * self.gain.reshape(1, -1, *[1] * (s.ndim - 2))


def relu(channels: int, gain: bool = False) -> nn.Module:
    """Makes a ReLU, max(0, s), or a `GainReLU`."""
    return GainReLU(channels) if gain else nn.ReLU()


def leaky_relu(channels: int, slope: float = 0.01) -> nn.Module:
    """Makes a leaky ReLU: s where s > 0, otherwise slope·s."""
    return nn.LeakyReLU(slope)
