"""Tasks: what a target asks of the network, how it is learned, and what its outputs mean."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.special import expit, log_softmax
from torch import nn

from nnunet_alice.features.metrics import Metric, classification_metrics, regression_metrics, survival_metrics
from nnunet_alice.targets.definitions import TargetDefinition
from nnunet_alice.targets.losses import CoxLoss, MaskedBinaryCrossEntropy, StandardisedHuber, WeightedCrossEntropy
from nnunet_alice.targets.settings import TargetSettings


@dataclass(frozen=True)
class Task(ABC):
    """A target, and what was taken of the training cases to learn it.

    Attributes:
        definition: of the target.
        statistics: of the training cases, a list of numbers a name; the checkpoint keeps them.
        score: metric that is followed in training; higher is better.
    """

    definition: TargetDefinition
    statistics: dict[str, list[float]]
    score: ClassVar[str]

    @staticmethod
    @abstractmethod
    def measure(definition: TargetDefinition, values: pd.DataFrame, settings: TargetSettings) -> dict[str, list[float]]:
        """Return statistics of the training cases' values."""

    @property
    def outputs(self) -> int:
        """Numbers that the network gives a case."""
        return len(self.definition.columns)

    @abstractmethod
    def loss(self, settings: TargetSettings) -> nn.Module:
        """Return the loss of outputs (B, outputs) and truth (B, columns)."""

    @abstractmethod
    def predictions(self, outputs: np.ndarray) -> pd.DataFrame:
        """Return what outputs (N, outputs) say, a row a case."""

    @abstractmethod
    def metrics(self, truth: np.ndarray, predictions: pd.DataFrame) -> dict[str, Metric]:
        """Return metrics of predictions, given truth (N, columns)."""

    @abstractmethod
    def shown(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the number of outputs (N, outputs) that a picture shows; ``reference`` (outputs,) chooses it."""

    def record(self) -> dict[str, Any]:
        """Return plain data that :func:`task_of_record` takes."""
        return {"definition": asdict(self.definition), "statistics": self.statistics}

    def truth_columns(self, truth: np.ndarray) -> dict[str, Any]:
        """Return columns of the truth for ``predictions.csv``."""
        return {f"true_{column}": truth[:, number] for number, column in enumerate(self.definition.columns)}


class Classification(Task):
    """One of several classes.

    Classes may be weighted in training. The weights are taken back from the probabilities, so that these are those of
    the training cases' frequencies. The predicted class is the one whose probability exceeds its frequency most.
    """

    score = "auc"

    @staticmethod
    def measure(definition: TargetDefinition, values: pd.DataFrame, settings: TargetSettings) -> dict[str, list[float]]:
        """Return the weight of every class."""
        counts = np.bincount(values.iloc[:, 0].astype(int), minlength=len(definition.classes))
        weights = counts.sum() / (len(counts) * counts) if settings.balance else np.ones(len(counts))
        return {"weights": weights.tolist()}

    @property
    def outputs(self) -> int:
        """Number of classes."""
        return len(self.definition.classes)

    def loss(self, settings: TargetSettings) -> nn.Module:
        """Return the weighted cross-entropy."""
        return WeightedCrossEntropy(self.statistics["weights"])

    def predictions(self, outputs: np.ndarray) -> pd.DataFrame:
        """Return ``predicted``, and ``probability_CLASS`` of every class."""
        classes = self.definition.classes
        probabilities = np.exp(log_softmax(outputs - np.log(self.statistics["weights"]), axis=1))
        columns = {f"probability_{name}": probabilities[:, number] for number, name in enumerate(classes)}
        return pd.DataFrame({"predicted": np.array(classes, dtype=object)[outputs.argmax(axis=1)], **columns})

    def metrics(self, truth: np.ndarray, predictions: pd.DataFrame) -> dict[str, Metric]:
        """Return metrics of the classes."""
        classes = list(self.definition.classes)
        probabilities = predictions[[f"probability_{name}" for name in classes]].to_numpy()
        predicted = predictions["predicted"].map(classes.index).to_numpy()
        return classification_metrics(truth[:, 0], probabilities, predicted)

    def truth_columns(self, truth: np.ndarray) -> dict[str, Any]:
        """Return the true class of every case."""
        classes = np.array(self.definition.classes, dtype=object)
        return {f"true_{self.definition.columns[0]}": classes[truth[:, 0].astype(int)]}

    def shown(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the log-probability of the predicted class."""
        return log_softmax(outputs, axis=1)[:, int(reference.argmax())]


class MultiLabel(Task):
    """Several labels, each of which is there, is not there, or is not known."""

    score = "auc"

    @staticmethod
    def measure(definition: TargetDefinition, values: pd.DataFrame, settings: TargetSettings) -> dict[str, list[float]]:
        """Return the weight of the positive cases of every label."""
        positive = values.mean().to_numpy()  # of those that are known
        weights = (1 - positive) / positive if settings.balance else np.ones(len(positive))
        return {"positive_weights": weights.tolist()}

    def loss(self, settings: TargetSettings) -> nn.Module:
        """Return the cross-entropy of the labels that are known."""
        return MaskedBinaryCrossEntropy(self.statistics["positive_weights"])

    def predictions(self, outputs: np.ndarray) -> pd.DataFrame:
        """Return ``predicted_LABEL`` (0 or 1) and ``probability_LABEL`` of every label."""
        probabilities = expit(outputs - np.log(self.statistics["positive_weights"]))
        columns = {}
        for number, label in enumerate(self.definition.columns):
            columns[f"predicted_{label}"] = (outputs[:, number] > 0).astype(int)
            columns[f"probability_{label}"] = probabilities[:, number]
        return pd.DataFrame(columns)

    def metrics(self, truth: np.ndarray, predictions: pd.DataFrame) -> dict[str, Metric]:
        """Return ``METRIC_LABEL`` of every label over the cases in which it is known, and means of those defined."""
        each: dict[str, dict[str, Metric]] = {}
        for number, label in enumerate(self.definition.columns):
            chosen = predictions[f"probability_{label}"].to_numpy(), predictions[f"predicted_{label}"].to_numpy()
            for name, metric in _of_the_known(truth[:, number], *chosen).items():
                each.setdefault(name, {})[label] = metric
        found: dict[str, Metric] = {}
        for name, of_label in each.items():
            found[name] = _mean(list(of_label.values()), len(truth))
            found |= {f"{name}_{label}": metric for label, metric in of_label.items()}
        return found

    def shown(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the logit of the most probable label."""
        return outputs[:, int(reference.argmax())]


class Regression(Task):
    """One or several numbers, learned in standard deviations from the training cases' mean."""

    score = "r2"

    @staticmethod
    def measure(definition: TargetDefinition, values: pd.DataFrame, settings: TargetSettings) -> dict[str, list[float]]:
        """Return mean and standard deviation of every column."""
        return {"means": values.mean().tolist(), "deviations": values.std(ddof=0).tolist()}

    def loss(self, settings: TargetSettings) -> nn.Module:
        """Return the Huber loss of standardised columns."""
        return StandardisedHuber(self.statistics["means"], self.statistics["deviations"], settings.huber_delta)

    def predictions(self, outputs: np.ndarray) -> pd.DataFrame:
        """Return ``predicted_COLUMN`` in the column's own units."""
        values = outputs * self.statistics["deviations"] + self.statistics["means"]
        return pd.DataFrame({f"predicted_{name}": values[:, i] for i, name in enumerate(self.definition.columns)})

    def metrics(self, truth: np.ndarray, predictions: pd.DataFrame) -> dict[str, Metric]:
        """Return metrics of the column; of several ``METRIC_COLUMN`` of each, and ``r2``, their mean."""
        columns = self.definition.columns
        each = {
            column: regression_metrics(truth[:, number], predictions[f"predicted_{column}"].to_numpy())
            for number, column in enumerate(columns)
        }
        if len(columns) == 1:
            return each[columns[0]]
        mean = _mean([metrics["r2"] for metrics in each.values()], len(truth))
        return {"r2": mean} | {f"{name}_{c}": metric for c, metrics in each.items() for name, metric in metrics.items()}

    def shown(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the first column, in its own units."""
        return outputs[:, 0] * self.statistics["deviations"][0]


class Survival(Task):
    """The risk of an event, by Cox's proportional hazards."""

    score = "c_index"

    @staticmethod
    def measure(definition: TargetDefinition, values: pd.DataFrame, settings: TargetSettings) -> dict[str, list[float]]:
        """Return times and events of the training cases, in their order."""
        return {"times": values.iloc[:, 0].tolist(), "events": values.iloc[:, 1].tolist()}

    @property
    def outputs(self) -> int:
        """One, the log hazard ratio."""
        return 1

    def loss(self, settings: TargetSettings) -> nn.Module:
        """Return the partial likelihood of Cox's model."""
        return CoxLoss(self.statistics["times"], [bool(event) for event in self.statistics["events"]])

    def predictions(self, outputs: np.ndarray) -> pd.DataFrame:
        """Return ``risk``, the log hazard ratio up to a constant."""
        return pd.DataFrame({"risk": outputs[:, 0]})

    def metrics(self, truth: np.ndarray, predictions: pd.DataFrame) -> dict[str, Metric]:
        """Return the concordance index of the risks."""
        return survival_metrics(truth[:, 0], truth[:, 1], predictions["risk"].to_numpy())

    def shown(self, outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the log hazard ratio."""
        return outputs[:, 0]


_KINDS: dict[str, type[Task]] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "regression": Regression,
    "survival": Survival,
}


def learn_task(definition: TargetDefinition, values: pd.DataFrame, settings: TargetSettings) -> Task:
    """Return the task of a target.

    Args:
        definition: of the target.
        values: of the training cases, a row each.
        settings: of the trainer.
    """
    kind = _KINDS[definition.task]
    return kind(definition, kind.measure(definition, values, settings))


def task_of_record(record: dict[str, Any]) -> Task:
    """Return the task that a checkpoint describes (:meth:`Task.record`)."""
    definition = TargetDefinition.of_record(record["definition"])
    return _KINDS[definition.task](definition, record["statistics"])


def _of_the_known(truth: np.ndarray, probability: np.ndarray, predicted: np.ndarray) -> dict[str, Metric]:
    """Return metrics of one label; a sample's cases in which it is not known do not count."""
    known = np.isfinite(truth)
    metrics = classification_metrics(np.nan_to_num(truth), np.stack([1 - probability, probability], axis=1), predicted)

    def of_known(metric: Metric) -> Metric:
        return lambda at: metric(at[known[at]]) if known[at].any() else float("nan")

    return {name: of_known(metric) for name, metric in metrics.items()}


def _mean(metrics: Sequence[Metric], cases: int) -> Metric:
    """Return the mean of the metrics that all cases together define: without a label that none of them has."""
    defined = [metric for metric in metrics if not np.isnan(metric(np.arange(cases)))]
    return lambda at: float(np.mean([metric(at) for metric in defined])) if defined else float("nan")
