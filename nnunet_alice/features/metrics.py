"""How good predictions are, with intervals from a bootstrap over patients.

A bootstrap asks for each metric a thousand times, so these are a few numpy operations; tests hold scikit-learn's beside
them.
"""

import numpy as np
from scipy.stats import rankdata

from nnunet_alice.features.folds import Metric


def area_under_curve(positive: np.ndarray, score: np.ndarray) -> float:
    """Return share of (positive, negative) pairs that the score orders rightly, ties counting half; NaN without pairs.

    Args:
        positive: (N,) bool.
        score: (N,).
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return np.nan
    return float((rankdata(score)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def classification_metrics(truth: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> dict[str, Metric]:
    """Return metrics of one class of several.

    ``auc`` (of more than two classes the mean of one against the rest), ``balanced_accuracy`` (over classes in the
    truth), ``f1`` (mean over classes that are true or predicted) and ``brier`` (of two classes the squared error of the
    second's probability, else its sum over classes).

    Args:
        truth: (N,) numbers of the classes.
        probabilities: (N, classes).
        predicted: (N,) numbers of the classes.
    """
    classes = probabilities.shape[1]
    truth = truth.astype(int)

    def area(at: np.ndarray) -> float:
        shown = [1] if classes == 2 else range(classes)
        return float(np.mean([area_under_curve(truth[at] == c, probabilities[at, c]) for c in shown]))

    def counts(at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for each class: cases predicted rightly, cases, and cases predicted so."""
        table = np.bincount(truth[at] * classes + predicted[at], minlength=classes**2).reshape(classes, classes)
        return np.diag(table), table.sum(axis=1), table.sum(axis=0)

    def balanced(at: np.ndarray) -> float:
        right, true, _ = counts(at)
        return float((right[true > 0] / true[true > 0]).mean())

    def f1(at: np.ndarray) -> float:
        right, true, said = counts(at)
        there = true + said > 0
        return float((2 * right[there] / (true + said)[there]).mean())

    errors = ((probabilities - np.eye(classes)[truth]) ** 2).sum(axis=1) / (2 if classes == 2 else 1)
    return {"auc": area, "balanced_accuracy": balanced, "f1": f1, "brier": lambda at: float(errors[at].mean())}


def regression_metrics(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Metric]:
    """Return ``mae``, ``r2`` and ``spearman`` of (N,) numbers; NaN truth is left out."""

    def known(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = at[np.isfinite(truth[at])]
        return truth[at], predicted[at]

    def explained(at: np.ndarray) -> float:
        true, said = known(at)
        total = ((true - true.mean()) ** 2).sum() if len(true) else 0.0
        return float(1 - ((true - said) ** 2).sum() / total) if total > 0 else np.nan

    def ranks(at: np.ndarray) -> float:
        true, said = known(at)
        if not len(true) or np.ptp(true) == 0 or np.ptp(said) == 0:
            return np.nan
        return float(np.corrcoef(rankdata(true), rankdata(said))[0, 1])

    return {"mae": lambda at: float(np.abs(np.subtract(*known(at))).mean()), "r2": explained, "spearman": ranks}


def survival_metrics(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> dict[str, Metric]:
    """Return ``c_index`` of risks (N,) of cases with (N,) times and events."""
    return {"c_index": lambda at: concordance(times[at], events[at].astype(bool), risks[at])}


def concordance(times: np.ndarray, events: np.ndarray, risks: np.ndarray) -> float:
    """Return Harrell's concordance index: share of comparable pairs in which the earlier event has the higher risk.

    A pair is comparable where the shorter time ends in an event; equal risks count half.

    Args:
        times: (N,).
        events: (N,) bool.
        risks: (N,).

    Returns:
        NaN without a comparable pair.
    """
    right, pairs = 0.0, 0
    for number in np.flatnonzero(events):
        # who is censored at the very time of an event lived longer
        later = (times > times[number]) | ((times == times[number]) & ~events)
        right += (risks[later] < risks[number]).sum() + 0.5 * (risks[later] == risks[number]).sum()
        pairs += int(later.sum())
    return float(right / pairs) if pairs else float("nan")
