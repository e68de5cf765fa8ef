"""Intervals cover what they promise, p-values are uniform, and all agree with scipy and statsmodels' formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from decaybench.analysis.statistics import (
    anytime_interval,
    correlation,
    equivalent,
    holm,
    mean_interval,
    minimum_detectable_difference,
    p_value,
    paired_win_rate,
)

N = 4000
DRAWS = {
    "normal": (lambda rng, n: rng.normal(0.3, 1, n), 0.3),
    "skewed": (lambda rng, n: rng.gamma(4, 1, n), 4.0),
    "tied": (lambda rng, n: np.round(rng.normal(0.3, 1, n)), 0.3),  # its mean is 0.3 to 1e-8
}


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("kind", list(DRAWS))
def test_intervals_cover_93_to_97_percent(kind: str, n: int) -> None:
    draw, mean = DRAWS[kind]
    rng = np.random.default_rng(1)
    intervals = [mean_interval(draw(rng, n)) for _ in range(N)]
    covered = np.mean([i.low is None or i.low <= mean <= i.high for i in intervals])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("kind", ["normal", "tied"])
def test_anytime_intervals_cover_whenever_one_stops(kind: str) -> None:
    """The sceptic's rule: look after every seed and stop at the first interval that misses, if there ever is one."""
    draw, mean = DRAWS[kind]
    rng = np.random.default_rng(2)
    caught, covered = 0, 0
    for _ in range(800):
        values = draw(rng, 60)
        intervals = [anytime_interval(values[:n]) for n in range(2, 61)]
        known = [i for i in intervals if i.low is not None]
        caught += any(not i.low <= mean <= i.high for i in known)
        last = next((i for i in known if i.high - i.low <= 1.0), known[-1])  # the tool's rule
        covered += last.low <= mean <= last.high
    assert caught / 800 <= 0.06
    assert covered / 800 >= 0.94


def test_students_interval_does_not_when_one_looks_after_every_seed() -> None:
    """Which is why there is another one."""
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(500):
        values = rng.normal(0, 1, 60)
        intervals = [mean_interval(values[:n]) for n in range(5, 61)]
        missed += any(not i.low <= 0 <= i.high for i in intervals)
    assert missed / 500 > 0.15


def test_the_anytime_interval_is_where_its_bayes_factor_is_twenty() -> None:
    values = np.random.default_rng(4).normal(1, 2, 12)
    interval = anytime_interval(values)
    n, nu = 12, 11
    for mu in (interval.low, interval.high):
        t2 = ((values.mean() - mu) / stats.sem(values)) ** 2
        factor = (1 + n) ** -0.5 * ((1 + t2 / nu) / (1 + t2 / (nu * (1 + n)))) ** (n / 2)
        assert factor == pytest.approx(20)


def test_p_values_are_scipys_and_uniform_under_the_null() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(2000):
        differences = rng.normal(0, 1, 10)
        found.append(p_value(differences))
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert found[-1] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06), None]
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_keeps_the_family_together() -> None:
    rng = np.random.default_rng(6)
    alarms = [min(holm([p_value(rng.normal(0, 1, 8)) for _ in range(6)])) < 0.05 for _ in range(1000)]
    assert np.mean(alarms) <= 0.065


def test_the_detectable_difference_is_found_with_its_power() -> None:
    rng = np.random.default_rng(7)
    base = rng.normal(0, 1, 12)
    base = (base - base.mean()) / base.std(ddof=1)  # exactly standard
    smallest = minimum_detectable_difference(base)
    found = [p_value(rng.normal(smallest, 1, 12)) < 0.05 for _ in range(3000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_two_one_sided_tests_are_scipys() -> None:
    values = np.random.default_rng(8).normal(0.05, 0.2, 20)
    expected = max(
        stats.ttest_1samp(values, 0.3, alternative="less").pvalue,
        stats.ttest_1samp(values, -0.3, alternative="greater").pvalue,
    )
    assert equivalent(values, 0.3) == pytest.approx(expected)
    assert equivalent(values, 0.3) < 0.05 < equivalent(values, 0.06)


def test_equivalence_is_rarely_claimed_at_the_margin() -> None:
    rng = np.random.default_rng(9)
    claimed = [equivalent(rng.normal(0.5, 0.3, 10), 0.5) < 0.05 for _ in range(2000)]
    assert np.mean(claimed) <= 0.065


def test_improvement_counts_ties_as_half() -> None:
    assert paired_win_rate([0.1, -0.1, 0.0, 0.2]) == 0.625
    assert paired_win_rate([]) is None


def test_correlation_is_numpys() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.normal(size=(2, 9))
    assert correlation(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert correlation(a, [0.5] * 9) is None


@given(st.lists(st.floats(0, 1), max_size=12))
def test_no_values_break_them(values: list[float]) -> None:
    for function in (mean_interval, anytime_interval, p_value, paired_win_rate, minimum_detectable_difference):
        function(values)
    interval = anytime_interval(values)
    if interval.low is not None:
        narrow = mean_interval(values)
        assert interval.low <= narrow.low <= narrow.high <= interval.high
