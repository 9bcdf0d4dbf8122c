"""What a run reports every epoch: one row of named numbers, kept in the checkpoint and written as ``metrics.csv``."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from nnunet_alice.files import atomic_write


class MetricsHistory:
    """Rows of metrics, one an epoch.

    Args:
        rows: rows of a run that is continued.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        self.rows: list[dict[str, float]] = [dict(row) for row in rows]

    def append(self, row: Mapping[str, float]) -> None:
        """Add an epoch; values become plain floats."""
        self.rows.append({name: float(value) for name, value in row.items()})

    def column(self, name: str) -> list[float]:
        """Return one metric over all epochs, NaN where an epoch lacks it."""
        return [row.get(name, math.nan) for row in self.rows]

    def names(self) -> list[str]:
        """Return metrics in the order in which they first appeared."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def write_csv(self, path: str | Path) -> None:
        """Write all rows, whole or not at all."""
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.names(), restval="")
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)


def mean_metrics(steps: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the steps that have it; NaN ("nothing measured") counts in losses alone."""
    sums: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            measured = sums.setdefault(name, [])
            if name.startswith("loss") or not math.isnan(value):
                measured.append(float(value))
    return {name: sum(values) / len(values) if values else math.nan for name, values in sums.items()}
