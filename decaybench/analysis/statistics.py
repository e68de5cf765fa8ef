"""Means, differences, their intervals, tests and power.

Intervals are Student's t. The BCa bootstrap was tried and is not used: of nominal 95% it covers 87% for 8 normal
values, 90% for 10 and 93% for 20 (800 simulations each), where Student's t covers 95%, and 94% for skewed values (a
gamma distribution of shape 4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import nctdtrinc, stdtr, stdtrit

TIE_TOLERANCE = 1e-12  # differences of equal fractions differ by rounding


class Interval(NamedTuple):
    """An estimate with its interval; ``low`` and ``high`` are None where the values allow none."""

    estimate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, from which intervals and tests follow by Student's t.

    Attributes:
        value: The mean.
        error: Its standard error, above 0.
        df: Degrees of freedom, not always whole.
    """

    value: float
    error: float
    df: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the two-sided interval."""
        half = float(stdtrit(self.df, 0.5 + confidence / 2)) * self.error
        return self.value - half, self.value + half

    def p_value(self) -> float:
        """Returns the two-sided p-value of a true mean of 0."""
        return float(2 * stdtr(self.df, -abs(self.value) / self.error))

    def detectable(self, level: float = 0.05, power: float = 0.8) -> float:
        """Returns the smallest true difference that a test at this level would have shown with this power."""
        critical = float(stdtrit(self.df, 1 - level / 2))
        # The noncentrality, in standard errors; the other tail is empty where there is any power.
        return self.error * float(nctdtrinc(self.df, 1 - power, critical))


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Estimates the mean over new seeds; None for fewer than two values, and where all are equal."""
    error = _standard_error(values)
    if error is None:
        return None
    return Estimate(math.fsum(values) / len(values), error, len(values) - 1)


def crossed(values: npt.NDArray[np.float64]) -> Estimate | None:
    """Estimates the mean over new seeds and new test examples, both as random effects.

    The quasi-F of Clark 1973 (subjects × items) with Satterthwaite's degrees of freedom: the variance of the mean is
    the mean square of the seeds, plus that of the examples, less that of the rest; where that sum is below either of
    the first two, the larger of these, or the rest where both are zero.

    Args:
        values: (seeds, examples): what each run made of each example, or the difference of two runs there.

    Returns:
        With one seed an estimate over examples only, with one example over seeds only. None where no two values
        differ, or there is only one.
    """
    n, m = values.shape
    mean = float(values.mean())
    if n == 1 or m == 1:
        return over_seeds(values.ravel().tolist())
    rows, columns = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - rows[:, None] - columns
    a = m * float(rows @ rows) / (n - 1)
    b = n * float(columns @ columns) / (m - 1)
    e = float(np.square(rest).sum()) / ((n - 1) * (m - 1))
    total = a + b - e
    if total >= max(a, b):
        df = total**2 / (a**2 / (n - 1) + b**2 / (m - 1) + e**2 / ((n - 1) * (m - 1))) if total > 0 else 1.0
    else:
        total, df = (a, n - 1.0) if a >= b else (b, m - 1.0)
        if total <= TIE_TOLERANCE:  # all means are equal, and the values are not
            total, df = e, (n - 1.0) * (m - 1.0)
    error = math.sqrt(max(total, 0.0) / (n * m))
    return Estimate(mean, error, df) if error > TIE_TOLERANCE else None


def over_splits(values: Sequence[float], test_share: float) -> Estimate | None:
    """Estimates the mean over new seeds and new splits, where every seed divided the same data anew.

    The splits overlap, so that the values are not independent: the corrected resampled t-test of Nadeau and Bengio
    (Machine Learning 52, 2003), whose squared error is s² (1/n + test_share).

    Args:
        values: One number per seed.
        test_share: Number of test examples, divided by that of examples to train on.
    """
    estimate, n = over_seeds(values), len(values)
    return estimate and replace(estimate, error=estimate.error * math.sqrt(1 + n * test_share))


class Components(NamedTuple):
    """The parts of the variance of one number of a table of seeds × test examples."""

    seeds: float
    examples: float
    rest: float

    def error(self, seeds: float, examples: float) -> float:
        """Returns the standard error of the mean of as many seeds and examples."""
        return math.sqrt(self.seeds / seeds + self.examples / examples + self.rest / (seeds * examples))


def components(values: npt.NDArray[np.float64]) -> Components | None:
    """Estimates the variance that seeds, examples and the rest bring in; None for one seed or one example."""
    n, m = values.shape
    if n < 2 or m < 2:
        return None
    mean = float(values.mean())
    rows, columns = values.mean(1) - mean, values.mean(0) - mean
    rest = float(np.square(values - mean - rows[:, None] - columns).sum()) / ((n - 1) * (m - 1))
    seeds = (m * float(rows @ rows) / (n - 1) - rest) / m
    examples = (n * float(columns @ columns) / (m - 1) - rest) / n
    return Components(max(seeds, 0.0), max(examples, 0.0), rest)


def seeds_needed(parts: Components, examples: float, half: float) -> float | None:
    """Returns how many seeds make an interval of ±half with so many examples; None where no number does."""
    left = (half / 1.96) ** 2 - parts.examples / examples
    return None if left <= 0 else max(2.0, math.ceil((parts.seeds + parts.rest / examples) / left))


def examples_needed(parts: Components, seeds: float, half: float) -> float | None:
    """Returns how many test examples make an interval of ±half with so many seeds; None where no number does."""
    left = (half / 1.96) ** 2 - parts.seeds / seeds
    return None if left <= 0 else max(2.0, math.ceil((parts.examples + parts.rest / seeds) / left))


def holm_levels(p_values: Sequence[float], level: float = 0.05) -> list[float]:
    """Returns the level at which Holm's correction tests each p-value: it is significant where it is not above.

    From the first one on that is not significant, all are tested at that one's level, so that an interval at
    confidence 1 − level leaves 0 out exactly where the difference is significant.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    levels, stopped = [level] * len(p_values), 0.0
    for rank, i in enumerate(order):
        levels[i] = stopped or level / (len(p_values) - rank)
        if not stopped and p_values[i] > levels[i]:
            stopped = levels[i]
    return levels


def _standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of the mean; None for one value, and where all are equal.

    Accuracies are counts of a few hundred images, and seeds that tie say little about the next one: an error of zero
    would claim certainty.
    """
    if len(values) < 2 or max(values) - min(values) < TIE_TOLERANCE:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


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
