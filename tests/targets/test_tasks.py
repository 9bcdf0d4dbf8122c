"""Tasks: what is taken of the training cases, and what outputs say."""

import numpy as np
import pandas as pd
import pytest

from nnunet_alice.targets.definitions import TargetDefinition
from nnunet_alice.targets.settings import TargetSettings
from nnunet_alice.targets.tasks import learn_task, task_of_record

KIND = TargetDefinition("kind", "classification", ("kind",), ("healthy", "ill"))
LABELS = TargetDefinition("labels", "multilabel", ("a", "b"))
SIZES = TargetDefinition("sizes", "regression", ("length", "width"))
DEATH = TargetDefinition("death", "survival", ("t", "e"))
VALUES = {
    "kind": pd.DataFrame({"kind": [0.0] * 8 + [1.0] * 2}),
    "labels": pd.DataFrame({"a": [1.0, 0, 0, 0], "b": [1.0, 1, np.nan, 0]}),
    "sizes": pd.DataFrame({"length": [10.0, 30.0], "width": [1.0, 5.0]}),
    "death": pd.DataFrame({"t": [1.0, 2.0, 3.0], "e": [1.0, 0.0, 1.0]}),
}
TASKS = [learn_task(d, VALUES[d.name], TargetSettings()) for d in (KIND, LABELS, SIZES, DEATH)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.definition.name)
def test_a_record_gives_the_task_back(task):
    assert task_of_record(task.record()) == task


def test_weights_of_classes_are_taken_back_from_their_probabilities():
    """Outputs that say nothing give the frequencies of the training cases."""
    task = TASKS[0]
    assert task.statistics["weights"] == pytest.approx([10 / 16, 10 / 4])
    said = task.predictions(np.array([[0.0, 0.0], [0.0, 0.1], [1.0, 0.0]]))
    assert said["probability_ill"].iloc[0] == pytest.approx(0.2)
    assert said["predicted"].tolist()[1:] == ["ill", "healthy"]  # above its frequency, though below one half
    np.testing.assert_allclose(said[["probability_healthy", "probability_ill"]].sum(axis=1), 1)
    assert learn_task(KIND, VALUES["kind"], TargetSettings(balance=False)).statistics["weights"] == [1, 1]


def test_labels_have_their_own_frequency_and_metrics():
    task = TASKS[1]
    said = task.predictions(np.zeros((1, 2)))
    assert said["probability_a"].item() == pytest.approx(0.25) and said["probability_b"].item() == pytest.approx(2 / 3)
    truth = np.array([[1, 1], [0, np.nan], [0, 0], [1, np.nan]])
    said = task.predictions(np.array([[2.0, 1], [-1, 9], [-1, -1], [-2, -9]]))
    metrics = {name: metric(np.arange(4)) for name, metric in task.metrics(truth, said).items()}
    assert metrics["auc_a"] == pytest.approx(0.5) and metrics["auc_b"] == 1 and metrics["auc"] == pytest.approx(0.75)
    assert metrics["f1_b"] == 1


def test_numbers_come_back_in_their_units():
    task = TASKS[2]
    said = task.predictions(np.array([[0.0, 0.0], [1.0, -1.0]]))
    assert said.to_numpy().tolist() == [[20, 3], [30, 1]]
    metrics = task.metrics(VALUES["sizes"].to_numpy(), said)
    at = np.arange(2)
    assert metrics["r2"](at) == pytest.approx(np.mean([metrics["r2_length"](at), metrics["r2_width"](at)]))
    assert metrics["mae_width"](at) == 3


def test_a_higher_risk_is_an_earlier_event():
    task = TASKS[3]
    said = task.predictions(np.array([[3.0], [1.0], [2.0]]))
    assert task.metrics(VALUES["death"].to_numpy(), said)["c_index"](np.arange(3)) == 1
    assert task.outputs == 1 and task.truth_columns(VALUES["death"].to_numpy()).keys() == {"true_t", "true_e"}


def test_a_label_that_no_case_has_does_not_hide_the_others():
    task = TASKS[1]
    said = task.predictions(np.array([[2.0, 1], [-1, 9]]))
    metrics = task.metrics(np.array([[1.0, 0.0], [0.0, 0.0]]), said)
    at = np.arange(2)
    assert np.isnan(metrics["auc_b"](at)) and metrics["auc"](at) == metrics["auc_a"](at) == 1
    assert np.isnan(metrics["auc"](at[:1]))
