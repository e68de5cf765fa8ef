"""Activations that learn nothing, for comparison."""

from torch import nn


def relu(channels: int) -> nn.Module:
    """Makes a ReLU, max(0, s)."""
    return nn.ReLU()


def leaky_relu(channels: int, slope: float = 0.01) -> nn.Module:
    """Makes a leaky ReLU: s where s > 0, otherwise slope·s."""
    return nn.LeakyReLU(slope)
