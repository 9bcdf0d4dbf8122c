"""What is to be predicted of the cases of a dataset, as ``targets.json`` and ``targets.csv`` keep it."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import read_json, read_table, write_csv, write_json
from nnunet_alice.nnunet_folders import dataset_number, nnunet_folder

TABLE, DEFINITIONS = "targets.csv", "targets.json"
#: task -> what it predicts
TASKS = {
    "classification": "one of several classes",
    "multilabel": "several labels, each of which is there or not",
    "regression": "one or several numbers",
    "survival": "the risk of an event, from times of which some are censored",
}
CASE, GROUP = "case", "group"


@dataclass(frozen=True)
class TargetDefinition:
    """One target of a dataset.

    Attributes:
        name: letters and digits, so that it may end a trainer's name.
        task: one of ``TASKS``.
        columns: of ``targets.csv``; for survival the time and the event (1, or 0 for censored).
        classes: of a classification, sorted; empty for other tasks.
    """

    name: str
    task: str
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()

    @classmethod
    def of_record(cls, record: dict) -> "TargetDefinition":
        """Take a definition out of plain data, as ``dataclasses.asdict`` gave it."""
        return cls(record["name"], record["task"], tuple(record["columns"]), tuple(record["classes"]))

    def values(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return rows of a table that have this target, as numbers, indexed by case; classes become their number.

        Multi-label rows may lack some of the labels (NaN), but not all.

        Args:
            table: of :class:`DatasetTargets`.
        """
        values = table.set_index(CASE)[list(self.columns)]
        values = values.dropna(how="all" if self.task == "multilabel" else "any")
        if self.task == "classification":
            numbers = {name: number for number, name in enumerate(self.classes)}
            return values.map(numbers.__getitem__).astype(float)
        return values.astype(float)


@dataclass(frozen=True)
class DatasetTargets:
    """All targets of a dataset.

    Attributes:
        table: columns ``case``, ``group`` (only where patients are named) and those of the targets, all text; a row a
            case.
        definitions: name -> definition.
        path: the table's file, for messages.
    """

    table: pd.DataFrame
    definitions: dict[str, TargetDefinition]
    path: Path

    def groups(self, cases: Sequence[str]) -> list[str]:
        """Return the group of each case; a case without one is a group of its own."""
        known = {}
        if GROUP in self.table:
            known = self.table.dropna(subset=[GROUP]).set_index(CASE)[GROUP].to_dict()
        return [f"group {known[case]}" if case in known else f"case {case}" for case in cases]

    def choose(self, name: str | None, tasks: Sequence[str], trainer: str) -> TargetDefinition:
        """Return the target that a trainer learns.

        Args:
            name: of the target; None for the only one of these tasks. Capitals do not matter.
            tasks: that the trainer can learn.
            trainer: its name, for the messages.

        Raises:
            InputError: there is no such target, or the choice is not clear.
        """
        fitting = {key: target for key, target in self.definitions.items() if target.task in tasks}
        known = ", ".join(f"{target.name} ({target.task})" for target in self.definitions.values())
        if name is not None:
            fitting = {key: target for key, target in fitting.items() if key.lower() == name.lower()}
        if not fitting:
            what = f"target {name}" if name else "target"
            raise InputError(
                f"{self.path} has no {what} that {trainer} can learn ({' or '.join(tasks)}); it has: {known}."
            ).about(path=self.path, value=name)
        if len(fitting) > 1:
            endings = " or ".join(f"-tr {trainer}_target{key}" for key in fitting)
            raise InputError(f"{self.path} has several targets for {trainer}; name one: {endings}.").about(
                path=self.path, value=endings
            )
        return next(iter(fitting.values()))


def target_name(text: str) -> str:
    """Return the name of a target for a column: its letters and digits.

    Raises:
        InputError: it has none.
    """
    name = re.sub(r"[^A-Za-z0-9]", "", text)
    if not name:
        raise InputError(f"'{text}' holds no letter and no digit; name the target with --name.").about(
            option="--name", value=text
        )
    return name


def load_targets(dataset: str) -> DatasetTargets:
    """Return targets of a dataset, from its raw folder, or from the preprocessed one where there is no raw data.

    Args:
        dataset: full name, ``Dataset900_NAME``.

    Raises:
        NotPreparedError: no targets were stored.
        InputError: the files do not fit each other.
    """
    places = [folder / dataset for folder in _folders()]
    folder = next((place for place in places if (place / DEFINITIONS).is_file()), None)
    if folder is None:
        raise NotPreparedError(
            f"{dataset} has no {DEFINITIONS}; run: nnunet_alice targets -d {dataset_number(dataset)} "
            "--table labels.csv --target COLUMN --task classification"
        ).about(value=dataset, command=f"nnunet_alice targets -d {dataset_number(dataset)}")
    return read_targets(folder)


def read_targets(folder: Path) -> DatasetTargets:
    """Return the targets that lie in a folder.

    Raises:
        InputError: the files do not fit each other.
    """
    records = read_json(folder / DEFINITIONS)
    definitions = {name: TargetDefinition.of_record(record) for name, record in records.items()}
    table = read_table(folder / TABLE)
    wanted = {CASE, *(column for target in definitions.values() for column in target.columns)}
    missing = sorted(wanted - set(table.columns))
    if missing:
        raise InputError(
            f"{folder / TABLE} lacks the column '{missing[0]}' of {DEFINITIONS}; run nnunet_alice targets."
        ).about(path=folder / TABLE, column=missing[0], command="nnunet_alice targets")
    return DatasetTargets(table, definitions, folder / TABLE)


def store_targets(dataset: str, targets: DatasetTargets) -> list[Path]:
    """Write table and definitions to the dataset's raw and preprocessed folders, where they exist.

    Returns:
        the tables' files.
    """
    written = []
    for folder in (parent / dataset for parent in _folders()):
        if folder.is_dir():
            write_csv(folder / TABLE, targets.table)
            write_json(folder / DEFINITIONS, {name: asdict(target) for name, target in targets.definitions.items()})
            written.append(folder / TABLE)
    return written


def _folders() -> list[Path]:
    """Return nnU-Net's raw folder, if it is set, and the preprocessed one."""
    raw = os.environ.get("nnUNet_raw")
    return [*([Path(raw)] if raw else []), nnunet_folder("nnUNet_preprocessed")]
