"""Means, differences, their intervals, tests and power.

Intervals are Student's t. The BCa bootstrap was tried and is not used: of nominal 95% it covers 87% for 8 normal
values, 90% for 10 and 93% for 20 (800 simulations each), where Student's t covers 95%, and 94% for skewed values (a
gamma distribution of shape 4).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

TIE_TOLERANCE = 1e-12  # differences of equal fractions differ by rounding


class Interval(NamedTuple):
    """An estimate with its interval; ``low`` and ``high`` are None where the values allow none."""

    estimate: float | None
    low: float | None
    high: float | None


def _standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean; None for one value, and where all are equal.

    Accuracies are counts of a few hundred images, and seeds that tie say little about the next one: an error of zero
    would claim certainty.
    """
    if len(values) < 2 or max(values) - min(values) < TIE_TOLERANCE:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Returns the mean with Student's t interval.

    Args:
        values: One number per seed; for a paired difference, the differences seed by seed.
        confidence: The share of such intervals that cover the true mean, for normal values.

    Returns:
        No interval for fewer than two values, and none where all are equal.
    """
    n, error = len(values), _standard_error(values)
    if n == 0:
        return Interval(None, None, None)
    mean = math.fsum(values) / n
    if error is None:
        return Interval(mean, None, None)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return Interval(mean, mean - half, mean + half)


def accuracy_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of accuracies with its interval, cut to 0 … 1."""
    mean, low, high = mean_interval(values)
    return Interval(mean, None if low is None else max(0.0, low), None if high is None else min(1.0, high))


def anytime_interval(values: Sequence[float], confidence: float = 0.95, g: float = 1.0) -> Interval:
    """Returns the mean with an interval that stays valid however often one looks and whenever one stops.

    All means that the Bayes factor of the t-test with Zellner's g-prior does not reject at 1/(1 − confidence). That
    factor is a test martingale under its null hypothesis, so the intervals of all sample sizes cover together
    (Pérez-Ortiz et al. 2022, arXiv 2208.07610; Wang and Ramdas 2023, arXiv 2310.03722), for normal values.

    Args:
        values: One number per seed, in the order in which they came.
        confidence: The share of sequences whose intervals all cover.
        g: The variance of the prior on the mean, in units of that of the values.
    """
    n, error = len(values), _standard_error(values)
    mean = math.fsum(values) / n if n else None
    if error is None or mean is None:
        return Interval(mean, None, None)
    r = 1 + n * g
    most = (math.sqrt(r) / (1 - confidence)) ** (2 / n)
    if most >= r:
        return Interval(mean, None, None)  # so few values allow any mean
    half = error * math.sqrt((n - 1) * (most - 1) / (1 - most / r))
    return Interval(mean, mean - half, mean + half)


def p_value(differences: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of Student's paired t-test; None where there is no spread."""
    error = _standard_error(differences)
    if error is None:
        return None
    t = math.fsum(differences) / len(differences) / error
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Applies Holm's correction, under which the chance of any false alarm in the family keeps the level."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[i] = highest
    return corrected


def paired_win_rate(differences: Sequence[float]) -> float | None:
    """Returns the share of seeds with a difference above zero, ties as half (Agarwal et al. 2021, 2108.13264)."""
    if not differences:
        return None
    signs = [0.5 if abs(d) < TIE_TOLERANCE else float(d > 0) for d in differences]
    return math.fsum(signs) / len(signs)


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the correlation of two cells seed by seed; None where one of them does not vary."""
    if len(first) < 3 or _standard_error(first) is None or _standard_error(second) is None:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def minimum_detectable_difference(
    differences: Sequence[float], power: float = 0.8, level: float = 0.05
) -> float | None:
    """Returns the smallest true difference that as many seeds with this spread would have shown with this power."""
    n, error = len(differences), _standard_error(differences)
    if error is None or n < 3:
        return None
    critical = float(stdtrit(n - 1, 1 - level / 2))
    # The noncentrality, in standard errors; the other tail is empty where there is any power.
    return error * float(nctdtrinc(n - 1, 1 - power, critical))


def equivalent(differences: Sequence[float], margin: float) -> float | None:
    """Returns the p-value of two one-sided tests (Schuirmann 1987): small where the mean lies within ±margin."""
    error = _standard_error(differences)
    if error is None:
        return None
    n, mean = len(differences), math.fsum(differences) / len(differences)
    return float(max(stdtr(n - 1, (mean - margin) / error), stdtr(n - 1, -(mean + margin) / error)))
