"""Classification as a user runs it: nnU-Net's own command with workers, pretrained weights, and new raw images."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.labelled_runs import make_finetuner
from support.small_datasets import set_folders
from support.target_runs import bright_volume, store, write_raw, write_target_dataset

from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.demo.commands import start
from nnunet_alice.discovery import package_folder

TRAINER = "ClassificationTrainer_1epoch_2iterations_headFirst_seed1"


def run(log: Path, *words, **environment) -> str:
    """Output of a real command of this installation."""
    variables = {**os.environ, "nnUNet_extTrainer": str(package_folder("nnunet_alice.trainers")), **environment}
    command = start(list(map(str, words)), variables, log)
    command.join()
    assert command.exitcode == 0, log.read_text()
    return log.read_text()


@pytest.mark.slow
def test_nnunets_command_trains_from_weights_and_new_images_are_classified(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    folder = write_target_dataset(tmp_path / "preprocessed")
    assert store(folder, "--target", "kind", "--task", "classification", "--folds", 2) == 0
    trainer = make_finetuner(nnUNetTrainer, folder)
    trainer.initialize()
    save_checkpoint({"network_weights": trainer.network.state_dict()}, tmp_path / "w.pth")
    words = ("nnUNetv2_train", 901, "3d_fullres", 0, "-tr", TRAINER, "-device", "cpu")
    said = run(tmp_path / "train.txt", *words, "-pretrained_weights", tmp_path / "w.pth", nnUNet_n_proc_DA="1")
    assert "Starts from pretrained weights" in said and "auc " in said
    model = tmp_path / "results" / folder.name / f"{TRAINER}__nnUNetPlans__3d_fullres"
    assert torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 1
    write_raw(tmp_path / "images", "new", bright_volume(50)[0])
    new = ("-i", tmp_path / "images", "-o", tmp_path / "out.csv", "-m", model)
    run(tmp_path / "predict.txt", "nnunet_alice", "predict_targets", *new)
    row = pd.read_csv(tmp_path / "out.csv").iloc[0]
    assert row["case"] == "new" and row["predicted"] in ("coarse", "fine")
    assert abs(row["probability_coarse"] + row["probability_fine"] - 1) < 1e-6
