"""ClassificationTrainer and RegressionTrainer on a small dataset."""

from pathlib import Path

import pandas as pd
import pytest
from labelled_runs import stay_in_process
from small_datasets import set_folders
from target_runs import start, store, write_target_dataset

from nnunet_alice.trainers import classification


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Twelve cases with values of several kinds."""
    set_folders(monkeypatch, tmp_path)
    stay_in_process(monkeypatch)
    return write_target_dataset(tmp_path / "preprocessed")


def short(name: str, epochs=2, iterations=2, endings="_seed1", **attributes) -> type:
    """A trainer of a few steps."""
    base = getattr(classification, f"{name}_{epochs}epochs_{iterations}iterations{endings}")
    return type(base.__name__, (base,), attributes)


def test_end_to_end(dataset):
    assert store(dataset, "--target", "value", "--task", "regression", "--group", "patient") == 0
    trainer = start(short("RegressionTrainer_scratch", epochs=3, iterations=4, endings="_seed1"), dataset)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    print(pd.read_csv(folder / "validation" / "predictions.csv"))
    print(pd.read_csv(folder / "validation" / "metrics.csv"))
    print(pd.read_csv(folder / "metrics.csv"))
    print(list(folder.rglob("*")))
    raise SystemError
