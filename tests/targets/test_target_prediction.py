"""What several folds say together."""

import pandas as pd
import pytest

from nnunet_alice.targets.prediction import mean_of_folds


def test_the_class_is_that_of_most_folds_and_ties_go_to_the_higher_probability():
    said = pd.DataFrame(
        {"predicted": ["a", "b", "b"], "probability_a": [0.9, 0.4, 0.3], "probability_b": [0.1, 0.6, 0.7]}
    )
    row = mean_of_folds(said).iloc[0]
    assert row["predicted"] == "b" and row["probability_a"] == pytest.approx(1.6 / 3)
    assert mean_of_folds(said.iloc[:2])["predicted"].item() == "a"
    assert mean_of_folds(said.iloc[:1]).iloc[0].tolist() == ["a", 0.9, 0.1]


def test_labels_are_voted_and_numbers_averaged():
    said = pd.DataFrame({"predicted_x": [1, 0, 1], "probability_x": [0.8, 0.2, 0.5], "predicted_y": [0, 0, 1]})
    said["probability_y"] = 0.1
    row = mean_of_folds(said).iloc[0]
    assert row["predicted_x"] == 1 and row["probability_x"] == pytest.approx(0.5) and row["predicted_y"] == 0
    for probabilities, expected in (([0.95, 0.45], 1), ([0.6, 0.3], 0)):  # ties go to the higher probability
        tie = pd.DataFrame({"predicted_x": [1, 0], "probability_x": probabilities})
        assert mean_of_folds(tie)["predicted_x"].item() == expected
    numbers = mean_of_folds(pd.DataFrame({"predicted_age": [40.0, 50.0]}))
    assert numbers["predicted_age"].item() == 45 and list(mean_of_folds(said).columns) == list(said.columns)
