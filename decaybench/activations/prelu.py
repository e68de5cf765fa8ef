"""PReLU: a learned slope for negative inputs."""

from torch import nn


def prelu(channels: int, shared: bool = False, init: float = 0.25) -> nn.Module:
    """S where s > 0, otherwise a·s, with one learned a per channel or one for all.

    Source: He et al. 2015, arXiv 1502.01852, section 2.1; the initial slope 0.25 is the paper's.
    """
    return nn.PReLU(1 if shared else channels, init)
