"""Intervals cover what they promise, p-values are uniform, and all agree with scipy and statsmodels' formulas."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.multitest import multipletests

from decaybench.analysis.statistics import (
    Components,
    Interval,
    anytime_interval,
    components,
    correlation,
    crossed,
    examples_needed,
    holm,
    holm_levels,
    over_seeds,
    paired_win_rate,
    seeds_needed,
)

N = 4000


def mean_interval(values) -> Interval:
    estimate = over_seeds(list(values))
    return Interval(None, None, None) if estimate is None else Interval(estimate.value, *estimate.interval())


def p_value(values) -> float:
    return over_seeds(list(values)).p_value()


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
    smallest = over_seeds(list(base)).detectable()
    found = [p_value(rng.normal(smallest, 1, 12)) < 0.05 for _ in range(3000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_an_interval_leaves_zero_out_exactly_where_holm_rejects() -> None:
    rng = np.random.default_rng(8)
    for _ in range(300):
        estimates = [over_seeds(list(rng.normal(rng.choice([0, 1.2]), 1, 8))) for _ in range(rng.integers(1, 9))]
        alone = [e.p_value() for e in estimates]
        levels, corrected = holm_levels(alone), holm(alone)
        for e, level, p in zip(estimates, levels, corrected, strict=True):
            low, high = e.interval(1 - level)
            assert (low > 0 or high < 0) == (p < 0.05)
            if p >= 0.05:
                assert e.detectable(level) > abs(e.value)
            assert level <= 0.05


def effects(rng, n: int, m: int, mean: float, seeds: float, images: float, rest: float = 1.0):
    """Seeds × images as crossed random effects."""
    parts = rng.normal(0, seeds, (n, 1)) + rng.normal(0, images, (1, m)) + rng.normal(0, rest, (n, m))
    return mean + parts


def test_crossed_is_the_quasi_f_of_a_two_way_table() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        n, m = rng.integers(2, 7, 2)
        x = effects(rng, n, m, 0.3, *rng.choice([0.0, 0.5, 2.0], 2))
        grand = sum(x[i, j] for i in range(n) for j in range(m)) / (n * m)
        rows = [sum(x[i]) / m for i in range(n)]
        columns = [sum(x[:, j]) / n for j in range(m)]
        seeds = m * sum((r - grand) ** 2 for r in rows) / (n - 1)
        images = n * sum((c - grand) ** 2 for c in columns) / (m - 1)
        rest = sum((x[i, j] - rows[i] - columns[j] + grand) ** 2 for i in range(n) for j in range(m))
        rest /= (n - 1) * (m - 1)
        found = crossed(x)
        total = seeds + images - rest
        if total > max(seeds, images):
            assert found.df == pytest.approx(
                total**2 / (seeds**2 / (n - 1) + images**2 / (m - 1) + rest**2 / ((n - 1) * (m - 1)))
            )
        else:
            assert found.df == (n - 1 if seeds >= images else m - 1)
        assert found.error**2 * n * m == pytest.approx(max(total, seeds, images))
        assert found.value == pytest.approx(grand)


@pytest.mark.parametrize("n", [5, 8, 20])
@pytest.mark.parametrize(("seeds", "images"), [(0.0, 0.0), (0.1, 1.0), (0.3, 0.3), (1.0, 0.1)])
def test_crossed_intervals_cover_over_new_seeds_and_images(n: int, seeds: float, images: float) -> None:
    rng = np.random.default_rng(10)
    missed = 0
    for _ in range(1500):
        low, high = crossed(effects(rng, n, 60, 0.2, seeds, images)).interval()
        missed += not low <= 0.2 <= high
    assert missed / 1500 <= 0.065


def test_two_or_three_seeds_may_cover_less() -> None:
    """Satterthwaite's degrees of freedom are themselves uncertain then; the manual says so."""
    rng = np.random.default_rng(13)
    for n, least in ((2, 0.86), (3, 0.92)):
        held = 0
        for _ in range(1500):
            low, high = crossed(effects(rng, n, 60, 0.2, 0.3, 0.3)).interval()
            held += low <= 0.2 <= high
        assert least <= held / 1500 < 0.95


def test_seeds_alone_do_not_cover_new_images() -> None:
    """Which is why images are an effect of their own."""
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(500):
        low, high = over_seeds(list(effects(rng, 20, 60, 0.2, 0.1, 1.0).mean(1))).interval()
        missed += not low <= 0.2 <= high
    assert missed / 500 > 0.3


def test_what_an_interval_would_take_is_what_it_takes() -> None:
    """The parts of the variance are found, and as many seeds or images really make the interval that narrow."""
    rng = np.random.default_rng(14)
    found = [components(effects(rng, 40, 200, 0.0, 0.3, 0.5)) for _ in range(60)]
    mean = [float(np.mean(part)) for part in zip(*found, strict=True)]
    assert mean == pytest.approx([0.09, 0.25, 1.0], rel=0.15)
    parts = Components(0.09, 0.25, 1.0)
    seeds = seeds_needed(parts, 200, 0.12)
    assert 1.96 * parts.error(seeds, 200) <= 0.12 < 1.96 * parts.error(seeds - 1, 200)
    images = examples_needed(parts, 60, 0.12)
    assert 1.96 * parts.error(60, images) <= 0.12 < 1.96 * parts.error(60, images - 1)
    assert seeds_needed(parts, 200, 0.05) is None  # the images are the limit
    assert examples_needed(parts, 3, 0.12) is None  # the seeds are
    assert components(np.ones((1, 9))) is None


def test_the_error_is_that_of_a_mixed_model_of_statsmodels() -> None:
    """Of a balanced table restricted maximum likelihood estimates the same components, where none is below 0."""
    rng = np.random.default_rng(1)
    n, m = 6, 12
    table = 1 + rng.normal(size=(n, 1)) + rng.normal(size=(1, m)) + rng.normal(size=(n, m))
    seed, image = np.indices(table.shape)
    data = pd.DataFrame({"y": table.ravel(), "seed": seed.ravel(), "image": image.ravel(), "one": 1})
    crossing = {"seed": "0 + C(seed)", "image": "0 + C(image)"}
    fit = MixedLM.from_formula("y ~ 1", groups="one", re_formula="0", vc_formula=crossing, data=data).fit()
    found, parts = crossed(table), components(table)
    assert found is not None
    assert parts is not None
    assert found.value == pytest.approx(fit.params["Intercept"])
    assert found.error == pytest.approx(fit.bse["Intercept"], rel=1e-3)
    assert (parts.examples, parts.seeds, parts.rest) == pytest.approx((*fit.vcomp, fit.scale), rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_holm_is_that_of_statsmodels(count: int) -> None:
    p_values = list(np.random.default_rng(count).uniform(0, 0.2, count))
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_tables_of_one_row_one_column_or_no_difference() -> None:
    x = np.random.default_rng(12).normal(size=(6, 9))
    assert crossed(x[:1]) == over_seeds(list(x[0]))
    assert crossed(x[:, :1]) == over_seeds(list(x[:, 0]))
    assert crossed(np.zeros((4, 5))) is None
    assert crossed(np.full((4, 5), 0.1)) is None
    assert crossed(np.ones((1, 1))) is None
    turned = crossed(np.array([[1.0, -1.0], [-1.0, 1.0]]))  # every image differs, and no mean does
    assert turned.value == 0
    assert turned.error > 0


def test_improvement_counts_ties_as_half() -> None:
    assert paired_win_rate([0.1, -0.1, 0.0, 0.2]) == 0.625
    assert paired_win_rate([]) is None


def test_correlation_is_numpys() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.normal(size=(2, 9))
    assert correlation(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert correlation(a, [0.5] * 9) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_no_values_break_them(values: list[float]) -> None:
    for function in (over_seeds, anytime_interval, paired_win_rate):
        function(values)
    interval = anytime_interval(values)
    if interval.low is not None:
        narrow = mean_interval(values)
        assert interval.low <= narrow.low <= narrow.high <= interval.high
