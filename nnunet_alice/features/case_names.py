"""One case under two names: ``s01`` and ``S1_0000.nii.gz`` are one, and spreadsheets make ``7`` of ``007``."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from nnunet_alice.errors import InputError
from nnunet_alice.words import counted

_ENDING = re.compile(r"\.(?:nii|nrrd|mha|mhd|nhdr|hdr|img|gipl|mgz|npz|csv|dcm|gz|0)+(?:\.gz)?$")
#: of the first channel only: ``_0007`` and ``_2019`` may be all that tells cases apart
_CHANNEL = re.compile(r"_0000$")


def written_otherwise(cases: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return which cases have a different spelling among names.

    Args:
        cases: names of cases.
        names: e.g. of a table's column.

    Returns:
        case -> its name there, for each case that is not there as it is and looks like exactly one name that is no
        case.
    """
    cases, names = set(cases), set(names)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names - cases:
        alike[_plain(name)].append(name)
    found = {case: alike[_plain(case)] for case in sorted(cases - names) if _plain(case) in alike}
    return {case: spelled[0] for case, spelled in found.items() if len(spelled) == 1}


def check_spelling(path: str | os.PathLike, cases: Iterable[str], names: Iterable[str], column: str, what: str) -> None:
    """Make sure that no case is missing from a table because it is written otherwise there.

    Args:
        path: of the table.
        cases: names of cases.
        names: what the table has.
        column: its column of case names.
        what: what the cases are, for the message: ``case with features``.

    Raises:
        InputError: some are: a part of the cases would be left out as if it had no label.
    """
    cases = list(map(str, cases))
    otherwise = written_otherwise(cases, map(str, names))
    if otherwise:
        case, name = next(iter(otherwise.items()))
        raise InputError(
            f"{len(otherwise)} of {counted(len(cases), 'case')} {what} are written otherwise in column '{column}' of "
            f"{path}, e.g. '{case}' is '{name}' there; write them alike."
        ).about(case=case, path=path, column=column, value=name)


def _plain(name: str) -> str:
    """Return what is left of a name without ending, channel, capitals, leading zeros and signs between words."""
    composed = unicodedata.normalize("NFKC", name)  # an accent may be a letter of its own
    text = _CHANNEL.sub("", _ENDING.sub("", composed.strip().lower()))
    text = re.sub(r"[\W_]+", "_", text).strip("_")
    return re.sub(r"\d+", lambda number: str(int(number[0])), text)
