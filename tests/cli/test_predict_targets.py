"""The command predict_targets."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from support.labelled_runs import make_finetuner, stay_in_process
from support.small_datasets import set_folders
from support.target_runs import bright_volume, store, write_raw, write_target_dataset

from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.cli.main import main
from nnunet_alice.trainers import classification


@pytest.fixture
def values(tmp_path, monkeypatch):
    """A dataset whose values are to be predicted."""
    set_folders(monkeypatch, tmp_path)
    stay_in_process(monkeypatch)
    folder = write_target_dataset(tmp_path / "preprocessed")
    assert store(folder, "--target", "value", "--task", "regression", "--folds", 3) == 0
    return folder


def test_several_folds_are_averaged_and_other_folders_refused(values, tmp_path, capsys):
    kind = classification.RegressionTrainer_scratch_1epoch_2iterations_seed1
    for fold in (0, 1):
        trainer = make_finetuner(kind, values, fold=fold)
        trainer.initialize()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    model = Path(trainer.output_folder_base)
    for name in ("plans", "dataset"):
        source = values / ("nnUNetPlans.json" if name == "plans" else "dataset.json")
        (model / f"{name}.json").write_text(source.read_text())
    write_raw(tmp_path / "images", "new", bright_volume(99)[0])
    said = []
    for folds in (["0"], ["1"], ["0", "1"], []):
        words = ["-i", str(tmp_path / "images"), "-o", str(tmp_path / "out.csv"), "-m", str(model)]
        assert main(["predict_targets", *words, *(["-f", *folds] if folds else [])]) == 0
        said.append(pd.read_csv(tmp_path / "out.csv")["predicted_value"].item())
    assert said[2] == said[3] == pytest.approx((said[0] + said[1]) / 2) and said[0] != said[1]
    assert main(["predict_targets", "-i", str(tmp_path / "images"), "-o", "o.csv", "-m", str(tmp_path)]) == 1
    save_checkpoint({"network_weights": {"a": torch.ones(1)}}, model / "fold_0" / "checkpoint_final.pth")
    assert main(["predict_targets", *words]) == 1
    assert "not written by ClassificationTrainer" in capsys.readouterr().err
