"""Folds of cases: stratified by the target, and no patient on both sides."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from nnunet_alice.errors import InputError, named
from nnunet_alice.targets.definitions import DatasetTargets, TargetDefinition

SPLITS = "splits_final.json"
#: numbers are stratified by so many quantiles
_QUANTILES = 5
#: strata smaller than the folds are put together
_RARE = -1


def strata(definition: TargetDefinition, values: pd.DataFrame) -> np.ndarray:
    """Return the number of the stratum of every case: (N,) int.

    Classes and combinations of labels are strata; numbers are cut at their quantiles; times at theirs, apart for events
    and censored cases.

    Args:
        definition: of the target.
        values: of its ``values``.
    """
    if definition.task in ("classification", "multilabel"):
        keys = values.fillna(-1).apply(tuple, axis=1)
    elif definition.task == "survival":
        keys = values.groupby(definition.columns[1])[definition.columns[0]].transform(_quantile)
        keys = keys + _QUANTILES * values[definition.columns[1]].astype(int)
    else:
        keys = _quantile(values[definition.columns[0]])
    return pd.factorize(keys)[0]


def make_splits(
    targets: DatasetTargets, definition: TargetDefinition, cases: Sequence[str], folds: int, seed: int
) -> list[dict[str, list[str]]]:
    """Return folds of all cases of a dataset, as ``splits_final.json`` holds them.

    Cases without the target are in the folds, too, as one stratum: a different trainer may use them.

    Args:
        targets: of the dataset.
        definition: of the target to stratify by.
        cases: of the dataset.
        folds: at least 2.
        seed: of the shuffling.

    Returns:
        for each fold ``train`` and ``val``, sorted.

    Raises:
        InputError: there are fewer groups than folds, or a class of which a fold has no training case.
    """
    if folds < 2:
        raise InputError(f"{folds} folds are no split; take at least 2.").about(value=folds)
    cases = sorted(cases)
    values = definition.values(targets.table)
    stratum = pd.Series(_RARE - 1, index=cases)
    known = values.index.intersection(cases)
    stratum[known] = strata(definition, values.loc[known])
    sizes = stratum.map(stratum.value_counts())
    stratum[sizes < folds] = _RARE
    groups = np.array(targets.groups(cases))
    if len(set(groups[stratum.index.isin(known)])) < folds:
        raise InputError(f"{targets.path} has fewer patients with '{definition.name}' than the {folds} folds.").about(
            path=targets.path, value=folds
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strata smaller than the folds; they were put together
        parts = list(splitter.split(np.zeros(len(cases)), stratum, groups))
    names = np.array(cases)
    splits = [{"train": names[train].tolist(), "val": names[val].tolist()} for train, val in parts]
    for number, split in enumerate(splits):
        check_training_cases(definition, values.loc[values.index.intersection(split["train"])], f"fold {number}")
    return splits


def check_training_cases(definition: TargetDefinition, values: pd.DataFrame, where: str) -> None:
    """Make sure that the training cases of a fold show what is to be learned.

    Args:
        definition: of the target.
        values: of the training cases.
        where: for the message, e.g. ``fold 0``.

    Raises:
        InputError: there is no case, or a class, label or event that no case has, or always the same number.
    """
    if not len(values):
        raise InputError(f"No training case of {where} has the target '{definition.name}'.").about(
            value=definition.name
        )
    if definition.task == "classification":
        counts = np.bincount(values.iloc[:, 0].astype(int), minlength=len(definition.classes))
        if not counts.all():
            name = definition.classes[int(counts.argmin())]
            raise InputError(
                f"No training case of {where} is of class '{name}'; use fewer folds, or leave it out."
            ).about(value=name)
        return
    events = definition.columns[1:] if definition.task == "survival" else definition.columns
    for column in events:
        if values[column].nunique() < 2 and not (definition.task == "survival" and values[column].any()):
            raise InputError(f"All training cases of {where} have the same '{column}'; use fewer folds.").about(
                column=column
            )


def check_no_leak(targets: DatasetTargets, split: Mapping[str, Sequence[str]], path: Path) -> None:
    """Make sure that no patient is on both sides of a fold.

    Args:
        targets: of the dataset.
        split: ``train`` and ``val``.
        path: of the splits, for the message.

    Raises:
        InputError: one is; the message names two cases.
    """
    train = dict(zip(targets.groups(split["train"]), split["train"], strict=True))
    val = dict(zip(targets.groups(split["val"]), split["val"], strict=True))
    both = sorted(set(train) & set(val))
    if both:
        examples = [f"{train[group]} and {val[group]}" for group in both]
        raise InputError(
            f"{path} puts cases of one patient on both sides of a fold ({named(examples)}); make new folds with "
            "nnunet_alice targets ... --new_splits."
        ).about(case=examples[0], path=path, option="--new_splits")


def _quantile(numbers: pd.Series) -> pd.Series:
    """Return the number of the quantile of each number."""
    return (numbers.rank(method="first", pct=True) * _QUANTILES).apply(np.ceil).astype(int) - 1
