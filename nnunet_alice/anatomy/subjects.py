"""Which cases are scans of one subject: from a table, or from a pattern that reads it off the names of cases."""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, read_table, write_json
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: What tells the scans of one subject apart at the end of a name: ``_ses-02``, ``_visit1``, ``_t0``, ``-2``, ``_b``.
_SCAN_ENDING = re.compile(
    r"[_\-. ](?:(?:ses|session|visit|scan|run|tp|v|t|s)[_\-]?\d{1,2}|\d{1,2}|[a-d])$", re.IGNORECASE
)
#: More scans than this make a group of a study, not of a subject.
_MAX_SCANS = 8


def read_subjects(source: str | os.PathLike, cases: Sequence[str]) -> dict[str, str]:
    """Read the subjects of cases.

    Args:
        source: a CSV file with the columns ``case`` and ``subject`` (or its first two columns), or a regular expression
            with one group, which is searched in the names: ``(sub-[0-9]+)_`` takes ``sub-07_ses-2`` for ``sub-07``.
        cases: names of all cases; those that the source says nothing about are left out, with a warning.

    Raises:
        InputError: the table cannot be read or names a case twice, the pattern is none or has not one group, or no case
            is found.
    """
    is_table = Path(source).is_file() or str(source).casefold().endswith(".csv")
    found = case_table(Path(source), "subject") if is_table else _from_pattern(str(source), cases)
    known = {case: found[case] for case in cases if case in found}
    if not known:
        example = f"; it has '{next(iter(found))}'" if found else ""
        raise InputError(
            f"{source} names the subject of none of the {counted(len(cases), 'case')}, e.g. '{cases[0]}'{example}."
        ).about(case=cases[0])
    missing = [case for case in cases if case not in known]
    if missing:
        logger.warning(
            "%s names no subject for %d of %d cases, e.g. %s; each counts as a subject of its own.",
            source, len(missing), len(cases), missing[0],
        )  # fmt: skip
    return known


def save_subjects(dataset: PreprocessedDataset, subjects: Mapping[str, str]) -> None:
    """Keep the subjects of a dataset's cases for its pretrainings."""
    write_json(subjects_file(dataset), dict(sorted(subjects.items())))


def load_subjects(dataset: PreprocessedDataset) -> dict[str, str]:
    """Return case -> subject, as `save_subjects` kept them; empty where nobody named them.

    Raises:
        InputError: the file is damaged.
    """
    path = subjects_file(dataset)
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(subject, str) for subject in content.values()):
        raise InputError(f"{path} is damaged; run nnunet_alice anatomy with --subjects again.").about(
            path=path, command="nnunet_alice anatomy"
        )
    return content


def subjects_file(dataset: PreprocessedDataset) -> Path:
    """Return where the subjects of a dataset's cases are kept."""
    return dataset.anatomy_folder / "subjects.json"


def likely_repeats(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that look like scans of one subject; None where no names or nearly all do."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_SCAN_ENDING.sub("", name), []).append(name)
    repeated = [group for group in groups.values() if len(group) > 1]
    if len(groups) < 2 or not repeated or max(map(len, repeated)) > _MAX_SCANS:
        return None
    return repeated[0][0], repeated[0][1]


def case_table(path: Path, column: str) -> dict[str, str]:
    """Return what a CSV table says of each case: the columns ``case`` and ``column``, or its first two.

    Raises:
        InputError: it cannot be read, has one column, or names a case twice.
    """
    table = read_table(path)
    columns = ["case", column] if {"case", column} <= set(table.columns) else list(table.columns[:2])
    if len(columns) < 2:
        raise InputError(f"{path} has one column; it needs the columns case and {column}.").about(
            path=path, column=column
        )
    table = table[columns].dropna()
    repeated = table[columns[0]].duplicated()
    if repeated.any():
        raise InputError(f"{path} names case '{table[columns[0]][repeated].iloc[0]}' more than once.").about(
            case=table[columns[0]][repeated].iloc[0], path=path
        )
    return dict(zip(table[columns[0]], table[columns[1]], strict=True))


def _from_pattern(pattern: str, cases: Sequence[str]) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"'{pattern}' is neither a file nor a pattern ({error}).").about(value=pattern) from None
    if compiled.groups != 1:
        raise InputError(
            f"'{pattern}' is no file, and as a pattern it needs one group around what names the subject, for example "
            "'(sub-[0-9]+)_'."
        ).about(value=pattern)
    matches = {case: compiled.search(case) for case in cases}
    return {case: match[1] for case, match in matches.items() if match and match[1]}
