"""Age and sex of real brains: import, plan, targets, both trainers through nnU-Net's function, and new raw images."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from nnunetv2.run.run_training import run_training
from support.modality_pools import run
from support.small_datasets import set_folders

from nnunet_alice.discovery import package_folder

CONFIGURATION, PLANS = "3d_fullres", "AliceSmallPlans"


@pytest.mark.slow
def test_age_and_sex_of_real_brains(tmp_path, monkeypatch, real_data):
    set_folders(monkeypatch, tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", str(package_folder("nnunet_alice.trainers")))
    source = real_data / "Dataset062_BrainT1"
    subjects = pd.read_csv(source / "subjects.csv").groupby("sex").head(2)
    (tmp_path / "scans").mkdir()
    for case in subjects["case"]:
        shutil.copy(source / "images" / f"{case}_0000.nii.gz", tmp_path / "scans")
    subjects.to_csv(tmp_path / "labels.csv", index=False)
    run("import", "-i", tmp_path / "scans", "-d", 902, "-n", "Brains", "--channel", "T1", "-np", 1)
    run("plan", "-d", 902, "-pl", "AlicePlannerSmall", "-np", 1)
    table = ("targets", "-d", 902, "--table", tmp_path / "labels.csv", "--folds", 2)
    run(*table, "--target", "sex", "--task", "classification")
    run(*table, "--target", "age_years", "--task", "regression")
    for family, column in (("ClassificationTrainer", "probability_F"), ("RegressionTrainer", "predicted_age_years")):
        trainer = f"{family}_scratch_1epoch_2iterations_seed1_0pictures"
        run_training("902", CONFIGURATION, 0, trainer, PLANS, device=torch.device("cpu"))
        model = tmp_path / "results" / "Dataset902_Brains" / f"{trainer}__{PLANS}__{CONFIGURATION}"
        validated = pd.read_csv(model / "fold_0" / "validation" / "predictions.csv", index_col="case")
        assert len(validated) == 2 and validated[column].nunique() > 1
        out = tmp_path / f"{family}.csv"
        run("predict_targets", "-i", tmp_path / "scans", "-o", out, "-m", model, "-device", "cpu")
        again = pd.read_csv(out, index_col="case")
        assert sorted(again.index) == sorted(subjects["case"])
        np.testing.assert_allclose(again.loc[validated.index, column], validated[column], rtol=1e-3)
