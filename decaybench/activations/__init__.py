"""The activation functions. Each is built with the number of channels and its options."""

from decaybench.activations.backends import backends
from decaybench.activations.kaf.module import KAF
from decaybench.activations.kaf.two_dimensional import KAF2D
from decaybench.activations.prelu import PReLU
from decaybench.activations.rational import Rational
from decaybench.activations.swish import Swish
from decaybench.activations.xielu import XIELU

__all__ = ["KAF", "KAF2D", "XIELU", "PReLU", "Rational", "Swish", "backends"]
