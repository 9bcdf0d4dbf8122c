"""What ``nnunet_alice targets`` does: check a table, store it, make folds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.nnunet_folders import dataset_number, nnunet_folder
from nnunet_alice.targets.definitions import TargetDefinition, load_targets, store_targets
from nnunet_alice.targets.labels import merge, read_labels
from nnunet_alice.targets.splits import SPLITS, check_no_leak, make_splits
from nnunet_alice.words import counted

_TRAINERS = {"regression": "RegressionTrainer", "survival": "RegressionTrainer_survival"}


@dataclass(frozen=True)
class PreparedTarget:
    """Outcome of :func:`prepare_targets`.

    Attributes:
        definition: of the target.
        cases: of the dataset.
        labelled: cases that have the target.
        files: tables that were written.
        summary: lines on the values and the folds.
        command: that trains.
    """

    definition: TargetDefinition
    cases: int
    labelled: int
    files: list[Path]
    summary: list[str]
    command: str


def prepare_targets(
    dataset: str,
    table: str | os.PathLike,
    columns: Sequence[str],
    task: str,
    *,
    name: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
    folds: int = 5,
    seed: int = 12345,
    new_splits: bool = False,
) -> PreparedTarget:
    """Check a table of labels and store it with a dataset; nothing is written where something is wrong.

    Args:
        dataset: full name, ``Dataset900_NAME``.
        table: CSV with one row a case.
        columns: to predict; for survival the time and the event.
        task: one of ``definitions.TASKS``.
        name: of the target; None makes one of the first column's name.
        id_column: column of case names; None is the first one.
        group_column: column of patients.
        folds: that are made where there are none.
        seed: of the folds.
        new_splits: make folds even where there are some.

    Raises:
        InputError: table, values or folds are not usable.
        NotPreparedError: the dataset has no case yet.
    """
    cases = dataset_cases(dataset)
    new = read_labels(table, columns, task, cases, name=name, id_column=id_column, group_column=group_column)
    (definition,) = new.definitions.values()
    try:
        targets = merge(load_targets(dataset), new)
    except NotPreparedError:
        targets = new
    preprocessed = nnunet_folder("nnUNet_preprocessed") / dataset
    path = preprocessed / SPLITS
    splits = read_json(path) if path.is_file() and not new_splits else None
    if splits is None:
        splits = make_splits(targets, definition, cases, folds, seed)
    for split in splits:
        check_no_leak(targets, split, path)
    values = definition.values(targets.table)
    summary = [*_describe(definition, values), _describe_folds(splits, values, path)]
    preprocessed.mkdir(parents=True, exist_ok=True)
    files = store_targets(dataset, targets)
    if new_splits or not path.is_file():
        write_json(path, splits)
    return PreparedTarget(definition, len(cases), len(values), files, summary, _command(dataset, definition))


def dataset_cases(dataset: str) -> list[str]:
    """Return names of all cases of a raw or preprocessed dataset, sorted.

    Raises:
        NotPreparedError: there is none.
    """
    raw = os.environ.get("nnUNet_raw")
    if raw and (Path(raw) / dataset / "dataset.json").is_file():
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        return sorted(get_filenames_of_train_images_and_targets(str(Path(raw) / dataset)))
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    cases = sorted({path.stem for path in folder.glob("*/*.b2nd") if not path.stem.endswith("_seg")})
    if not cases:
        raise NotPreparedError(f"{dataset} has no case; run nnunet_alice import and nnunet_alice plan first.").about(
            value=dataset, command="nnunet_alice import"
        )
    return cases


def _describe(definition: TargetDefinition, values: pd.DataFrame) -> list[str]:
    """Return lines on how the values are spread."""
    if definition.task == "classification":
        counts = values.iloc[:, 0].value_counts()
        return [f"{name}: {counted(counts.get(number, 0), 'case')}" for number, name in enumerate(definition.classes)]
    if definition.task == "multilabel":
        return [
            f"{label}: {int(values[label].sum())} of {counted(values[label].count(), 'case')}"
            for label in definition.columns
        ]
    if definition.task == "survival":
        return [
            f"{int(values.iloc[:, 1].sum())} events, times {values.iloc[:, 0].min():g} to {values.iloc[:, 0].max():g}"
        ]
    return [f"{c}: mean {values[c].mean():.4g}, {values[c].min():g} to {values[c].max():g}" for c in definition.columns]


def _describe_folds(splits: list[dict], values: pd.DataFrame, path: Path) -> str:
    sizes = [sum(case in values.index for case in split["val"]) for split in splits]
    if not any(sizes):
        raise InputError(
            f"{path} has no case with the target in any validation part; run again with --new_splits."
        ).about(path=path, option="--new_splits")
    return f"{counted(len(splits), 'fold')} with {', '.join(map(str, sizes))} validation cases that have it: {path}"


def _command(dataset: str, definition: TargetDefinition) -> str:
    trainer = _TRAINERS.get(definition.task, "ClassificationTrainer")
    words = f"nnUNetv2_train {dataset_number(dataset)} 3d_fullres 0 -p PLANS -tr {trainer}"
    return f"{words} -pretrained_weights checkpoint_final.pth"
