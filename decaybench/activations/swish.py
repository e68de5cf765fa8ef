"""Swish, an activation with one learned β per channel."""

import torch
from torch import Tensor, nn


class Swish(nn.Module):
    """s·σ(β·s) with one learned β per channel; decayed to 0, it is s/2.

    Source: Ramachandran et al. 2017, arXiv 1710.05941, section 3.

    Args:
        channels: C of the input (N, C) or (N, C, …).
        beta: Initial value of β; 1 is the SiLU.
    """

    def __init__(self, channels: int, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((channels,), beta))  # (C,)

    def forward(self, s: Tensor) -> Tensor:
        return s * torch.sigmoid(self.beta.reshape(1, -1, *[1] * (s.ndim - 2)) * s)
