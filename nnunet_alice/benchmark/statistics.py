"""Confidence intervals and tests for segmentation results that vary by case, by labelled draw and by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: np.ndarray, rng: np.random.Generator, resamples: int = 2000) -> Interval:
    """Return the mean of values that vary in several ways, with a 95 % interval: a bootstrap that draws all of them.

    The entries of each axis (pretraining seeds, draws of the labelled cases, test cases) are drawn with replacement,
    independently of the other axes; an axis of one entry does not vary. Drawing cases alone would take the luck of a
    draw or a seed for a property of the method.

    Args:
        values: an axis for each way in which they vary, e.g. (seeds, draws, cases); NaN where there is none.
        rng: source of chance.
        resamples: bootstrap samples.

    Returns:
        NaN throughout if there is no value.
    """
    values = np.atleast_1d(np.asarray(values, dtype=float))
    known = np.isfinite(values)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan)
    weights = [rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(float) for size in values.shape]
    sums = _weighted_sums(np.where(known, values, 0.0), weights)
    counts = _weighted_sums(known.astype(float), weights)
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values[known].mean()), float(low), float(high))


def _weighted_sums(values: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of an array for every sample's weights: (samples, n) for each axis of n entries."""
    samples, axes = values.ndim, range(values.ndim)
    factors = [part for axis in axes for part in (weights[axis], [samples, axis])]
    return np.einsum(values, list(axes), *factors, [samples], optimize=True)


def paired_wilcoxon(differences: np.ndarray) -> float:
    """Return two-sided p of Wilcoxon's signed-rank test on paired differences; NaN are left out.

    Returns:
        1 if no difference is left but zeros, NaN if there is none at all.
    """
    differences = np.asarray(differences, dtype=float)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return float("nan")
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down correction for several tests; NaN stay NaN and do not count."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, float(p[index]) * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted.tolist()
