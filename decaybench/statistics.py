"""Means, differences and their intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class Interval(NamedTuple):
    """An estimate with its interval; ``low`` and ``high`` are None where the values allow none."""

    estimate: float | None
    low: float | None
    high: float | None


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean with Student's t interval.

    Args:
        values: One number per seed; for a paired difference, the differences seed by seed.
        confidence: The share of such intervals that cover the true mean, for normal values.

    Returns:
        No interval for fewer than two values, and none where all are equal: accuracies are counts of a few
        hundred images, and seeds that tie say little about the next one. Zero width would claim certainty.
    """
    n = len(values)
    if n == 0:
        return Interval(None, None, None)
    mean = math.fsum(values) / n
    if n == 1 or max(values) - min(values) < 1e-12:  # differences of equal fractions differ by rounding
        return Interval(mean, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return Interval(mean, mean - half, mean + half)


def accuracy_interval(values: Sequence[float]) -> Interval:
    """The mean of accuracies with its interval, cut to what an accuracy can be: 0 … 1."""
    mean, low, high = mean_interval(values)
    return Interval(mean, None if low is None else max(0.0, low), None if high is None else min(1.0, high))
