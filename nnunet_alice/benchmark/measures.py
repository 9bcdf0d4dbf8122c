"""What a run leaves to be measured: nnU-Net's segmentations, or predictions of a target of whole cases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_alice.benchmark.settings import TARGET_TRAINERS, Settings
from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json
from nnunet_alice.targets.definitions import DatasetTargets, TargetDefinition, read_targets
from nnunet_alice.targets.splits import strata
from nnunet_alice.targets.tasks import Task, task_of_record

#: tasks that a family of trainers can learn
TASKS = {"ClassificationTrainer": ("classification", "multilabel"), "RegressionTrainer": ("regression",)}
SURVIVAL = "RegressionTrainer_survival"


class Segmentations:
    """nnU-Net's ``summary.json`` of predicted segmentations, in ``validation/`` of a run.

    Args:
        ending: of the segmentations' files.
    """

    file, title = "summary.json", "Dice"

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def cases(self, path: Path) -> list[str] | None:
        """Return sorted names of the cases in a summary; None if it is missing or not whole."""
        try:
            entries = read_json(path)["metric_per_case"]
            return sorted(Path(entry["prediction_file"]).name.removesuffix(self.ending) for entry in entries)
        except (InputError, KeyError, TypeError):
            return None

    def score(self, path: Path) -> float:
        """Return Dice of a validation."""
        return validation_dice(path)


class Predictions:
    """``predictions.csv`` of a target trainer, in ``validation/`` of a run.

    Args:
        targets: of the dataset.
        target: that the runs predict.
    """

    file = "predictions.csv"

    def __init__(self, targets: DatasetTargets, target: TargetDefinition) -> None:
        self.targets, self.target = targets, target
        self.values = target.values(targets.table)
        self.task: Task = task_of_record({"definition": vars(target), "statistics": {}})
        self.title = TITLES[self.task.score]

    def cases(self, path: Path) -> list[str] | None:
        """Return sorted names of the cases in a table of predictions; None if it is missing or not whole."""
        try:
            return sorted(self.read(path).index)
        except (OSError, ValueError, KeyError):
            return None

    def read(self, path: Path) -> pd.DataFrame:
        """Return predictions of a run, indexed by case."""
        text = {"case": str, "predicted": str}  # classes may be digits, or called None
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""]).set_index("case")

    def truth(self, cases: Sequence[str]) -> np.ndarray:
        """Return (N, columns) of cases."""
        return self.values.loc[list(cases)].to_numpy(float)

    def score(self, path: Path) -> float:
        """Return the task's score of a validation."""
        table = self.read(path)
        return self.task.metrics(self.truth(table.index), table)[self.task.score](np.arange(len(table)))

    def errors(self, table: pd.DataFrame) -> np.ndarray:
        """Return how wrong the prediction of each case is, (N,); NaN where a case alone cannot be wrong (survival).

        Classes count the probability that is missing, labels the mean of that over those known. Numbers count the mean
        distance in standard deviations of the truth.
        """
        truth, columns = self.truth(table.index), self.target.columns
        if self.target.task == "classification":
            given = table[[f"probability_{name}" for name in self.target.classes]].to_numpy()
            return 1 - given[np.arange(len(table)), truth[:, 0].astype(int)]
        if self.target.task == "multilabel":
            return np.nanmean(np.abs(table[[f"probability_{name}" for name in columns]].to_numpy() - truth), axis=1)
        if self.target.task == "regression":
            distance = np.abs(table[[f"predicted_{name}" for name in columns]].to_numpy() - truth)
            return (distance / self.values.std(ddof=0).to_numpy()).mean(axis=1)
        return np.full(len(table), np.nan)

    def strata(self, cases: Sequence[str]) -> dict[str, int]:
        """Return case -> stratum, so that draws of few cases show all classes, and all ages."""
        values = self.values.loc[list(cases)]
        return dict(zip(values.index, strata(self.target, values).tolist(), strict=True))


#: metric of ``Task.metrics`` -> how tables call it
TITLES = {"auc": "AUC", "r2": "R2", "c_index": "Concordance index", "mae": "Mean absolute error (lower is better)"}
TITLES |= {"balanced_accuracy": "Balanced accuracy", "brier": "Brier score (lower is better)"}


def measure_of(settings: Settings, folder: Path) -> Segmentations | Predictions:
    """Return what the runs of a benchmark leave.

    Args:
        settings: of the benchmark.
        folder: of its labelled dataset, preprocessed; with the targets if arms predict one.

    Raises:
        InputError: the target is not clear, or a trainer cannot learn it.
    """
    if not settings.predicts:
        if settings.target:
            raise InputError(f"'target' is for arms with a {' or '.join(TARGET_TRAINERS)}; leave it out.").about(
                option="target"
            )
        return Segmentations(read_json(folder / "dataset.json")["file_ending"])
    targets = read_targets(folder)
    found = None
    for arm in settings.arms:
        family = next((name for name in TARGET_TRAINERS if arm.trainer.startswith(name)), None)
        if family is None:
            raise InputError(
                f"Arm '{arm.name}' does not predict a target and others do; give it a trainer of the same family, "
                f"e.g. trainer: {TARGET_TRAINERS[1]}_scratch."
            ).about(option=arm.name)
        tasks = ("survival",) if arm.trainer.startswith(SURVIVAL) else TASKS[family]
        found = targets.choose(settings.target, tasks, arm.trainer)
    assert found is not None, "a benchmark has arms"
    return Predictions(targets, found)


def validation_dice(summary: Path) -> float:
    """Return Dice of a validation: mean over cases, then over the classes that the truth of any case has.

    nnU-Net's ``foreground_mean`` is NaN where one class is in no case, and a number where a model invents that class.

    Args:
        summary: nnU-Net's ``summary.json``.
    """
    content = read_json(summary)
    cases = [entry["metrics"] for entry in content["metric_per_case"]]
    present = [name for name in content["mean"] if any(case[name]["n_ref"] > 0 for case in cases)]
    return float(np.mean([content["mean"][name]["Dice"] for name in present])) if present else 0.0
