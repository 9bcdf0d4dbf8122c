"""Folds that keep the rows of a group together, and bootstrap samples of whole groups.

Scans of one person, or patches of one scan, resemble each other whatever the label: a model that has seen one of them
knows more of the others than of a new person. Groups are never split, neither by the outer nor by the inner folds.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from tqdm import tqdm

from nnunet_alice.errors import InputError

#: Folds of the search for the strength of a penalty, inside each training fold.
INNER_FOLDS = 3
Split = tuple[np.ndarray, np.ndarray]
#: metric of a sample of cases, given as (n,) indices that may repeat; NaN where the sample does not define it
Metric = Callable[[np.ndarray], float]
_BOOTSTRAPS = 1000


def make_folds(count: int, groups: np.ndarray | None, strata: np.ndarray | None, folds: int, seed: int) -> list[Split]:
    """Split N rows into folds.

    Args:
        count: N.
        groups: (N,) group of each row; None where every row is one of its own.
        strata: (N,) integers, class or event of each row, which folds share evenly; None for no classes.
        folds: their number.
        seed: of the shuffling.

    Returns:
        indices of the training and of the test part of each fold.

    Raises:
        InputError: there are not enough groups, or a class is missing from a training part.
    """
    kind = {
        (False, False): KFold,
        (False, True): StratifiedKFold,
        (True, False): GroupKFold,
        (True, True): StratifiedGroupKFold,
    }[groups is not None, strata is not None]
    splits = list(kind(folds, shuffle=True, random_state=seed).split(np.zeros(count), strata, groups))
    if strata is not None and any(len(np.setdiff1d(strata, strata[train])) for train, _ in splits):
        raise InputError(
            f"All cases of one class lie in one of {folds} folds, as they belong to too few groups; use fewer folds, "
            "or leave the class out of the table."
        ).about(value=folds)
    return splits


def count_groups(groups: np.ndarray | None, rows: np.ndarray) -> int:
    """Return the number of groups among rows, given as (N,) bool; the number of rows where there are no groups."""
    return int(rows.sum()) if groups is None else len(np.unique(groups[rows]))


def bootstrap_samples(
    count: int, groups: np.ndarray | None, samples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield samples of row numbers with replacement; of whole groups, if there are any."""
    if groups is None:
        for _ in range(samples):
            yield rng.integers(count, size=count)
        return
    numbers = np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
    for _ in range(samples):
        yield np.concatenate([members[number] for number in rng.integers(len(members), size=len(members))])


def with_intervals(
    metrics: Mapping[str, Metric], count: int, groups: np.ndarray | None, seed: int, *, progress: bool = False
) -> pd.DataFrame:
    """Return value and 95 % interval of every metric: columns ``metric``, ``value``, ``low``, ``high``.

    The bootstrap draws groups, not cases: two scans of one patient are no two samples.

    Args:
        metrics: name -> metric.
        count: N, number of cases.
        groups: (N,) group of each case; None where every case is one of its own.
        seed: of the bootstrap.
        progress: show a bar for each metric.
    """
    samples = list(bootstrap_samples(count, groups, _BOOTSTRAPS, np.random.default_rng(seed)))
    rows = []
    for name, metric in metrics.items():
        shown = tqdm(samples, desc=f"Interval of {name}", disable=None if progress else True)
        spread = np.array([metric(sample) for sample in shown])
        defined = spread[np.isfinite(spread)]
        low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
        rows.append({"metric": name, "value": metric(np.arange(count)), "low": low, "high": high})
    return pd.DataFrame(rows)
