"""`nnunet_alice targets` as it is typed: what it says, and what it refuses."""

import pytest
from support.small_datasets import set_folders
from support.target_runs import store, write_target_dataset


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    return write_target_dataset(tmp_path / "preprocessed")


def test_it_says_how_classes_are_spread_and_what_comes_next(dataset, capsys):
    assert store(dataset, "--target", "kind", "--task", "classification", "--folds", 2, "--name", "Texture") == 0
    said = capsys.readouterr().out
    assert "classification of 'Texture': 12 of 12 cases" in said and "coarse: " in said and "2 folds with 6, 6" in said
    assert "Next: nnUNetv2_train 901 3d_fullres 0 -p PLANS -tr ClassificationTrainer" in said
    assert {"targets.csv", "targets.json", "splits_final.json"} <= {path.name for path in dataset.iterdir()}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--target", "time", "--task", "survival"), "--event goes with --task survival"),
        (("--target", "value", "--task", "regression", "--event", "event"), "--event goes with --task survival"),
        (("--target", "value", "--task", "regression", "--folds", "1"), "1 folds"),
        (("--target", "value", "--task", "regression", "--folds", "50"), "than the 50 folds"),
    ],
)
def test_senseless_words_are_one_sentence_and_store_nothing(dataset, capsys, words, found):
    assert store(dataset, *words) == 1
    assert found in capsys.readouterr().err and not (dataset / "targets.csv").exists()
