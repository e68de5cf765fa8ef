"""The activations, one file each. Every one is built with the number of channels and its options."""

from decaybench.activations.kaf.module import KAF
from decaybench.activations.kaf.two_dimensional import KAF2D
from decaybench.activations.prelu import PReLU

__all__ = ["KAF", "KAF2D", "PReLU"]
