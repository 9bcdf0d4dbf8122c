"""What a linear probe starts from: case features joined with a table of labels, every mistake in one sentence."""

import logging
import os
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_alice.anatomy.subjects import likely_repeats
from nnunet_alice.errors import InputError, MissingFileError, named
from nnunet_alice.features.case_names import check_spelling
from nnunet_alice.files import read_table
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeData:
    """Features and labels of the same cases.

    Attributes:
        cases: (N,) names.
        features: (N, C) float64.
        target: (N,) class names, values, or times.
        event: (N,) bool, for survival; None otherwise.
        groups: (N,) names of what folds keep together, e.g. patients; None where every row is one of its own.
    """

    cases: np.ndarray
    features: np.ndarray
    target: np.ndarray
    event: np.ndarray | None = None
    groups: np.ndarray | None = None

    def groups_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Return groups of some rows, given by their indices; None where there are no groups."""
        return None if self.groups is None else self.groups[rows]


def load_features(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Return case names (N,) and case features (N, C) of what ``nnunet_alice features --level case`` wrote.

    Raises:
        InputError: the file is missing, something else or of patches, or holds features that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            level, cases, features = str(file["level"]), file["cases"].astype(str), file["features"].astype(np.float64)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist; write it with nnunet_alice features.").about(
            path=path, command="nnunet_alice features"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} was not written by nnunet_alice features ({error}).").about(
            path=path, command="nnunet_alice features"
        ) from None
    if level != "case":
        raise InputError(
            f"{path} holds features of level '{level}'; write them with nnunet_alice features --level case."
        ).about(path=path, value=level, command="nnunet_alice features --level case")
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise InputError(
            f"{path}: features of {counted(int(bad.sum()), 'case')} are not finite, the first is {cases[bad][0]}; "
            "write them again without these cases."
        ).about(case=cases[bad][0], path=path, value=bad.sum())
    return cases, features


def load_table(
    path: str | os.PathLike,
    cases: np.ndarray,
    features: np.ndarray,
    target: str,
    task: str,
    event: str | None = None,
    id_column: str | None = None,
    group: str | None = None,
) -> ProbeData:
    """Join a table of labels with features; cases without a label are left out, with a warning.

    Args:
        path: CSV with one row a case.
        cases, features: from `load_features`.
        target: column to predict; for survival the time until event or end of observation.
        task: ``classification``, ``regression`` or ``survival``.
        event: for survival, column of 1 (event) and 0 (censored).
        id_column: column of case names; None is the first one.
        group: column of what folds keep together, e.g. the patient; a case without one is a group of its own. None
            warns where names look like repeats.

    Raises:
        InputError: a column or all ids are missing, ids are repeated or written otherwise, or values cannot be used.
    """
    if task == "survival" and event is None:
        raise InputError(
            "Survival needs --event, the column that holds 1 for an event and 0 for a censored case."
        ).about(option="--event")
    table = read_table(path)
    id_column = id_column or table.columns[0]
    wanted = [target] + ([event] if event is not None and task == "survival" else [])
    for column in (id_column, *wanted, *([] if group is None else [group])):
        if column not in table.columns:
            raise InputError(f"{path} has no column '{column}'; it has: {', '.join(table.columns)}.").about(
                path=path, column=column
            )
    check_spelling(path, cases, table[id_column].dropna(), id_column, "with features")
    table = table.dropna(subset=[id_column, *wanted])
    names = table[id_column].to_numpy(dtype=str)
    if len(names) > len(set(names)):
        twice = table[id_column][table[id_column].duplicated()].iloc[0]
        raise InputError(
            f"{path} has more than one row for '{twice}' in column '{id_column}'; keep one row a case."
        ).about(case=twice, path=path, column=id_column)
    row_of = {name: row for row, name in enumerate(names)}
    known = np.isin(cases, names)
    if not known.any():
        raise InputError(
            f"None of the {counted(len(cases), 'case')} with features is in column '{id_column}' of {path} with a "
            f"'{target}': features have '{cases[0]}', the table has '{names[0] if len(names) else 'no such row'}'."
        ).about(case=cases[0], path=path, column=id_column)
    if not known.all():
        logger.warning(
            "%d of %s with features have no '%s' in %s and are left out: %s.",
            (~known).sum(), counted(len(cases), "case"), "' or no '".join(wanted), path, named(cases[~known].tolist()),
        )  # fmt: skip
    strangers = names[~np.isin(names, cases)].tolist()
    if strangers:
        logger.warning(
            "%s of %s are of no case with features: %s.", counted(len(strangers), "row"), path, named(strangers)
        )
    table = table.iloc[[row_of[case] for case in cases[known]]]
    values = table[target].to_numpy(dtype=str) if task == "classification" else numbers(table[target], path)
    events = None
    if event is not None and task == "survival":
        events = _events(table[event], target, values, path)
    if len(values) == 1:
        raise InputError(
            f"Only case {cases[known][0]} has features and a '{target}' in {path}; a probe takes several."
        ).about(case=cases[known][0], path=path, column=target)
    if len(np.unique(values)) < 2:
        raise InputError(
            f"All {len(values)} cases have the same '{target}' in {path} ({values[0]}); there is nothing to predict."
        ).about(path=path, column=target, value=values[0])
    groups = None if group is None else table[group].fillna(table[id_column]).to_numpy(dtype=str)
    if groups is None:
        _warn_of_repeats(cases[known])
    return ProbeData(cases[known], features[known], values, events, groups)


def _events(column: pd.Series, target: str, times: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """Return which cases had the event, bool; check that it is 0 or 1, and that times are above 0."""
    events = numbers(column, path)
    if not np.isin(events, (0, 1)).all():
        raise InputError(f"Column '{column.name}' of {path} must hold 0 and 1 only.").about(
            path=path, column=column.name
        )
    if (times <= 0).any():
        raise InputError(f"Times in column '{target}' of {path} must be positive; {times.min():g} is not.").about(
            path=path, column=target, value=f"{times.min():g}"
        )
    return events.astype(bool)


def _warn_of_repeats(cases: np.ndarray) -> None:
    """Warn of scans of one person in different folds, which make useless features look useful."""
    alike = likely_repeats(cases)
    if alike is not None:
        logger.warning(
            "%s and %s look like two scans of one person, which would be in different folds; name the column that "
            "tells persons apart with --group.", *alike
        )  # fmt: skip


def numbers(column: pd.Series, path: str | os.PathLike) -> np.ndarray:
    """Return a column of text as numbers (N,).

    Args:
        column: of a table.
        path: of the table, for messages.

    Raises:
        InputError: there is something else in it.
    """
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    bad = ~np.isfinite(values)
    if bad.any():
        raise InputError(
            f"Column '{column.name}' of {path} holds '{column.to_numpy()[bad][0]}', which is no number; for names of "
            "classes use --task classification."
        ).about(path=path, column=str(column.name), value=column.to_numpy()[bad][0], option="--task")
    return values
