"""A user's table of labels becomes targets of a dataset, every mistake in one sentence."""

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from nnunet_alice.errors import InputError, named
from nnunet_alice.features.case_names import check_spelling
from nnunet_alice.features.probe_data import numbers
from nnunet_alice.files import read_table
from nnunet_alice.targets.definitions import CASE, GROUP, DatasetTargets, TargetDefinition, target_name
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: more classes than this are taken for numbers that were meant for regression
_MAX_CLASSES = 100


def read_labels(
    path: str | os.PathLike,
    columns: Sequence[str],
    task: str,
    cases: Collection[str],
    *,
    name: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
) -> DatasetTargets:
    """Return one target from a table of labels.

    Args:
        path: CSV with one row a case.
        columns: to predict; for survival the time and the event.
        task: one of ``definitions.TASKS``.
        cases: of the dataset; rows of others are left out, with a warning.
        name: of the target; None makes one of the first column's name.
        id_column: column of case names; None is the first one.
        group_column: column of patients, if there are several cases of one.

    Raises:
        InputError: a column or all cases are missing, columns or cases are repeated, or values do not fit the task.
    """
    wanted = {"classification": 1, "survival": 2}.get(task)
    if wanted is not None and len(columns) != wanted:
        what = "the time and the event" if task == "survival" else "one column"
        raise InputError(f"{task} takes {what}, not {', '.join(columns)}.").about(value=task)
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise InputError(f"--target or --event name the column '{twice[0]}' twice; name different ones.").about(
            option="--target", column=twice[0]
        )
    source = read_table(path)
    id_column = id_column or source.columns[0]
    for column in (id_column, *columns, *([group_column] if group_column else [])):
        if column not in source.columns:
            raise InputError(f"{path} has no column '{column}'; it has: {', '.join(source.columns)}.").about(
                path=path, column=column
            )
    reserved = {CASE, GROUP} & set(columns)
    if reserved:
        raise InputError(f"{path}: the column '{reserved.pop()}' cannot be a target under this name; rename it.").about(
            path=path
        )
    table = source[[id_column]].rename(columns={id_column: CASE})
    if group_column:
        table[GROUP] = source[group_column]
    table[list(columns)] = source[list(columns)]
    table = _of_the_dataset(table, path, columns, cases, id_column)
    definition = TargetDefinition(target_name(name or columns[0]), task, tuple(columns), _classes(table, columns, task))
    _check_values(table, definition, path)
    return DatasetTargets(table, {definition.name: definition}, Path(path))


def merge(before: DatasetTargets, new: DatasetTargets) -> DatasetTargets:
    """Return targets of a dataset that had some; what has the same name is replaced.

    Raises:
        InputError: a case is of a different patient now, or a column of a kept target holds something else.
    """
    kept = {name: target for name, target in before.definitions.items() if name not in new.definitions}
    columns = {column: name for name, target in kept.items() for column in target.columns}
    old = before.table[[c for c in before.table.columns if c in (CASE, GROUP) or c in columns]]
    for column in [c for c in new.table.columns if c in columns]:
        one, other = old.set_index(CASE)[column].align(new.table.set_index(CASE)[column])
        differing = one.index[one.fillna("") != other.fillna("")]
        if len(differing):
            raise InputError(
                f"Case {differing[0]} has a different '{column}' in {new.path} than target '{columns[column]}' in "
                f"{before.path}; rename the column, or replace that target with --name {columns[column]}."
            ).about(case=differing[0], path=before.path, option="--name", column=column)
    if GROUP in old and GROUP in new.table:
        both = old.merge(new.table, on=CASE, suffixes=("", "_new")).dropna(subset=[GROUP, f"{GROUP}_new"])
        differing = both[both[GROUP] != both[f"{GROUP}_new"]]
        if len(differing):
            row = differing.iloc[0]
            raise InputError(
                f"Case {row[CASE]} is of '{row[GROUP]}' in {before.path} and of '{row[f'{GROUP}_new']}' in {new.path}; "
                f"make them agree, or delete {before.path}."
            ).about(case=row[CASE], path=before.path)
    table = old.set_index(CASE).combine_first(new.table.set_index(CASE)).reset_index()
    first = [CASE, *([GROUP] if GROUP in table else [])]
    table = table[[*first, *(column for column in table.columns if column not in first)]]
    return DatasetTargets(table, kept | new.definitions, before.path)


def _of_the_dataset(
    table: pd.DataFrame, path: str | os.PathLike, columns: Sequence[str], cases: Collection[str], id_column: str
) -> pd.DataFrame:
    """Return rows of the dataset's cases that have a value."""
    table = table.dropna(subset=[CASE]).dropna(subset=list(columns), how="all")
    twice = table[CASE][table[CASE].duplicated()]
    if len(twice):
        raise InputError(f"{path} has more than one row for '{twice.iloc[0]}'; keep one row a case.").about(
            case=twice.iloc[0], path=path
        )
    check_spelling(path, cases, table[CASE], id_column, "of the dataset")
    known = table[CASE].isin(list(cases))
    if not known.any():
        there = table[CASE].iloc[0] if len(table) else "no such row"
        raise InputError(
            f"None of the dataset's {counted(len(cases), 'case')} has a value in {path}: the dataset has "
            f"'{min(cases)}', the table '{there}'."
        ).about(case=min(cases), path=path)
    if not known.all():
        strangers = table[CASE][~known].tolist()
        logger.warning("%d rows of %s are of no case of the dataset: %s.", len(strangers), path, named(strangers))
    without = sorted(set(cases) - set(table[CASE]))
    if without:
        logger.warning(
            "%d of %d cases of the dataset have no value in %s: %s.", len(without), len(cases), path, named(without)
        )
    return table[known].reset_index(drop=True)


def _classes(table: pd.DataFrame, columns: Sequence[str], task: str) -> tuple[str, ...]:
    if task != "classification":
        return ()
    return tuple(sorted(table[columns[0]].dropna().unique()))


def _check_values(table: pd.DataFrame, target: TargetDefinition, path: str | os.PathLike) -> None:
    """Refuse what the task cannot learn.

    Raises:
        InputError: the message names the column and a value.
    """
    if target.task == "classification":
        if not 2 <= len(target.classes) <= _MAX_CLASSES:
            raise InputError(
                f"Column '{target.columns[0]}' of {path} has {len(target.classes)} different values; a classification "
                f"needs 2 to {_MAX_CLASSES}; for numbers use --task regression."
            ).about(path=path, column=target.columns[0], value=len(target.classes), option="--task")
        return
    for column in target.columns:
        numbers(table[column].dropna(), path)
    values = target.values(table)
    if not len(values):
        raise InputError(f"No case has all of {', '.join(target.columns)} in {path}.").about(path=path)
    if target.task == "survival" and (values.iloc[:, 0] <= 0).any():
        raise InputError(f"Times in column '{target.columns[0]}' of {path} have to be above 0.").about(
            path=path, column=target.columns[0]
        )
    binary = {"multilabel": target.columns, "survival": target.columns[1:]}.get(target.task, ())
    for column in target.columns:
        there = set(values[column].dropna())
        if column in binary and not there <= {0.0, 1.0}:
            raise InputError(f"Column '{column}' of {path} holds {max(there):g}; it may hold 0 and 1 only.").about(
                path=path, column=column, value=f"{max(there):g}"
            )
        if len(there) < 2:
            raise InputError(f"All cases have the same '{column}' in {path}; there is nothing to learn.").about(
                path=path, column=column
            )
