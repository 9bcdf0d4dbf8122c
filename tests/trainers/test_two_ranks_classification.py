"""Survival on two real gloo processes: equal weights and remembered risks, and one validation of both ranks' cases."""

import pandas as pd
import pytest
import torch
from support.gloo_ranks import needs_distributed, on_ranks
from support.labelled_runs import make_finetuner, stay_in_process
from support.pretraining_runs import with_settings
from support.small_datasets import set_folders
from support.target_runs import store, write_target_dataset

from nnunet_alice.trainers import classification
from nnunet_alice.training.devices import place

pytestmark = [needs_distributed, pytest.mark.slow]

KIND = classification.RegressionTrainer_survival_scratch


def run(rank, folder):
    """Two epochs and the validation; what this rank ends with."""
    with pytest.MonkeyPatch.context() as patch:
        stay_in_process(patch)
        short = {"run.epochs": 2, "run.iterations": 2, "run.seed": 1, "target.pictures": 0}
        trainer = make_finetuner(with_settings(KIND, short), folder)
        place(trainer, torch.device("cpu"))
        trainer.initialize()
        trainer.run_training()
        trainer.perform_actual_validation()
        return {
            "weights": dict(trainer.bare_network.state_dict()),
            "risks": trainer.loss.risks,
            "seen": trainer.loss.seen,
            "history": trainer.history.column("val_loss"),
            "folder": str(trainer.output_folder),
        }


def test_ranks_agree_on_everything_and_split_the_validation(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    folder = write_target_dataset(tmp_path / "preprocessed")
    assert store(folder, "--target", "time", "--event", "event", "--task", "survival", "--folds", 3) == 0
    first, second = on_ranks(run, tmp_path, folder)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert torch.equal(first["risks"], second["risks"]) and torch.equal(first["seen"], second["seen"])
    assert first["seen"].sum() > 2  # more than a rank draws in a step
    assert first["history"] == second["history"]
    predictions = pd.read_csv(f"{first['folder']}/validation/predictions.csv")
    assert len(predictions) == 4 and predictions["case"].is_monotonic_increasing and predictions["case"].is_unique
