"""Bootstrap and tests against scipy and textbook values."""

import numpy as np
import pytest
from scipy import stats

from nnunet_alice.benchmark.statistics import bootstrap_mean, holm, paired_wilcoxon


def rng():
    return np.random.default_rng(0)


def test_one_draw_agrees_with_scipys_bootstrap():
    values = rng().normal(0.8, 0.1, 60)
    ours = bootstrap_mean(values, rng(), resamples=8000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=8000, method="percentile", rng=rng()).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_two_way_variance_against_a_loop():
    values = rng().normal(size=(5, 20)) + 2 * rng().normal(size=(5, 1))
    chance = rng()
    means = []
    for _ in range(4000):
        rows, columns = chance.integers(0, 5, 5), chance.integers(0, 20, 20)
        means.append(values[np.ix_(rows, columns)].mean())
    ours = bootstrap_mean(values, rng(), resamples=4000)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.12)
    cases_only = bootstrap_mean(values.mean(axis=0), rng())
    assert ours.high - ours.low > 2 * (cases_only.high - cases_only.low)


def test_three_ways_of_varying_against_a_loop():
    values = rng().normal(size=(3, 5, 20)) + 2 * rng().normal(size=(3, 1, 1)) + rng().normal(size=(5, 1))
    chance = rng()
    means = [values[np.ix_(*(chance.integers(0, size, size) for size in values.shape))].mean() for _ in range(4000)]
    ours = bootstrap_mean(values, rng(), resamples=4000)
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.12)
    one_seed = bootstrap_mean(values[:1], rng())
    assert one_seed == bootstrap_mean(values[0], rng())  # an axis of one entry does not vary
    assert ours.high - ours.low > 1.5 * (one_seed.high - one_seed.low)


def test_missing_values_do_not_count():
    values = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, np.nan]])
    found = bootstrap_mean(values, rng())
    assert found.mean == pytest.approx(7 / 4) and 1 <= found.low <= found.high <= 3
    assert np.isnan(bootstrap_mean(np.full((2, 3), np.nan), rng()).mean)


def test_the_interval_covers_as_often_as_it_says():
    chance, covered = rng(), 0
    for _ in range(200):
        interval = bootstrap_mean(chance.normal(size=(1, 40)), chance, resamples=400)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_wilcoxon_is_scipys_and_has_textbook_values():
    differences = rng().normal(0.3, 1, 30)
    assert paired_wilcoxon(differences) == stats.wilcoxon(differences).pvalue
    assert paired_wilcoxon(np.append(differences, np.nan)) == stats.wilcoxon(differences).pvalue
    assert paired_wilcoxon(np.arange(1, 7.0)) == pytest.approx(2 / 2**6)  # all six of one sign
    assert paired_wilcoxon(np.zeros(5)) == 1.0
    assert np.isnan(paired_wilcoxon(np.array([np.nan])))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    found = holm([0.02, float("nan"), 0.03])
    assert found[0] == pytest.approx(0.04) and np.isnan(found[1]) and found[2] == pytest.approx(0.04)
