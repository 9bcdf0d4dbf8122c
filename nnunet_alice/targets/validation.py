"""Predictions of preprocessed cases, and what is written about them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from nnunet_alice.anatomy.geometry import UNREADABLE, load_geometry
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.features.folds import with_intervals
from nnunet_alice.files import write_csv
from nnunet_alice.pictures.targets import draw_predictions
from nnunet_alice.targets.tasks import Task
from nnunet_alice.targets.windows import CasePredictor


@dataclass
class Validated:
    """Outputs of cases, in order.

    Attributes:
        cases: names.
        outputs: (outputs,) of each.
        windows: number of windows of each.
        failed: reason of each case that could not be read.
    """

    cases: list[str] = field(default_factory=list)
    outputs: list[np.ndarray] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence["Validated"]) -> "Validated":
        """Return parts of several ranks, sorted by case."""
        rows = sorted(
            (row for part in parts for row in zip(part.cases, part.outputs, part.windows, strict=True)),
            key=lambda row: row[0],
        )
        cases, outputs, windows = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
        return cls(cases, outputs, windows, {case: why for part in parts for case, why in part.failed.items()})


@torch.no_grad()
def validate_cases(predictor: CasePredictor, dataset: PreprocessedDataset, cases: Sequence[str]) -> Validated:
    """Return outputs of cases; one that cannot be read stops no other."""
    found = Validated()
    for case in tqdm(cases, desc="Predicting cases", disable=None):
        try:
            features = predictor.case_features(dataset.image(case), load_geometry(dataset, case))
        except UNREADABLE as error:
            found.failed[case] = str(error)
            continue
        found.cases.append(case)
        found.outputs.append(predictor.outputs(features.mean)[0])
        found.windows.append(len(features.starts))
    return found


def write_results(
    folder: str | os.PathLike, task: Task, found: Validated, truth: np.ndarray, groups: Sequence[str]
) -> pd.DataFrame:
    """Write ``predictions.csv``, ``metrics.csv`` and ``predictions.png``.

    Args:
        folder: made if missing.
        task: of the network.
        found: outputs of N cases.
        truth: (N, columns).
        groups: (N,) patient of every case, for the intervals.

    Returns:
        the metrics, as ``with_intervals`` gives them.

    Raises:
        InputError: no case could be read.
    """
    if not found.cases:
        case, reason = next(iter(found.failed.items()))
        raise InputError(
            f"No validation case could be predicted, of which the first is {case} ({reason.rstrip('.')}); preprocess "
            "them again and run the training with --val."
        ).about(case=case, option="--val")
    folder = Path(folder)
    predictions = task.predictions(np.stack(found.outputs))
    metrics = with_intervals(task.metrics(truth, predictions), len(truth), np.asarray(groups), seed=0)
    table = pd.DataFrame({"case": found.cases, "windows": found.windows} | task.truth_columns(truth))
    table = pd.concat([table, predictions], axis=1)
    write_csv(folder / "predictions.csv", table)
    write_csv(folder / "metrics.csv", metrics)
    draw_predictions(
        task.definition.task, task.definition.columns, task.definition.classes, table, folder / "predictions.png"
    )
    return metrics
