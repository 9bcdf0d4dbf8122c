"""Which case stands for which DICOM series: the only file with identifiers of patients in it."""

import csv
from collections.abc import Collection
from pathlib import Path

from nnunet_alice.errors import OccupiedError
from nnunet_alice.files import atomic_write

_COLUMNS = (
    *("case", "patient", "date", "study", "series", "number", "description", "modality", "slices", "folder"),
    *("problem", "state"),
)


class NameTable:
    """Which case stands for which series, in a file that only its owner can read.

    Args:
        path: the file.

    Attributes:
        path: the file.
        rows: series -> its row; those of series that are gone stay, so that no name is given twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, str]] = {}
        if path.is_file():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    self.rows = {row["series"]: {name: row[name] for name in _COLUMNS} for row in csv.DictReader(file)}
            except (KeyError, ValueError, csv.Error):
                raise OccupiedError(f"{path} is not a table that import wrote; move it away.").about(
                    path=path
                ) from None

    def name_all(self, series: Collection[str], taken: Collection[str]) -> None:
        """Give a name to each series that has none; none of ``taken``."""
        used = {row["case"] for row in self.rows.values()} | set(taken)
        free = (name for number in range(1, 1_000_000) if (name := f"dicom_{number:05d}") not in used)
        for uid in sorted(set(series) - self.rows.keys()):
            self.rows[uid] = dict.fromkeys(_COLUMNS, "") | {"series": uid, "case": next(free)}

    def save(self) -> None:
        """Write the table, whole or not at all."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(sorted(self.rows.values(), key=lambda row: row["case"]))
        self.path.chmod(0o600)
