"""Chest CT, brain MR and hippocampus MR pretrained together, then fine-tuned on CT and on MR: real scans."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.run.run_training import run_training
from support.modality_pools import run
from support.small_datasets import set_folders

from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.discovery import package_folder
from nnunet_alice.files import read_json, write_json
from nnunet_alice.planning.preprocessing import preprocess_cases

PLANS, CONFIGURATION = "AliceSmallPlans", "3d_fullres"
ALICE = "AliceTrainer_1epoch_4iterations_seed1"
#: modality -> images, of which three go into the pool, and the labels of those that have some
SETS = {
    "CT": ("Dataset061_ChestCT/imagesTr", "*_0000.nii.gz", "Dataset061_ChestCT/labelsTr"),
    "T1": ("Dataset062_BrainT1/images", "*.nii.gz", None),
    "T1small": ("Task04_Hippocampus/imagesTr", "hippocampus_*.nii.gz", "Task04_Hippocampus/labelsTr"),
}


def link_pool(real_data: Path, folder: Path) -> None:
    """Three scans of each set, each set in a folder of its own."""
    for modality, (images, pattern, _) in SETS.items():
        (folder / modality).mkdir(parents=True)
        for path in sorted((real_data / images).glob(pattern))[:3]:
            shutil.copy(path, folder / modality / path.name)


def write_target(real_data: Path, raw: Path, modality: str) -> str:
    """A labelled raw dataset of three scans of a set; its full name. Of a CT the middle alone, to save windows."""
    images, pattern, labels = SETS[modality]
    assert labels is not None, "only labelled sets are targets"
    files = {}
    for path in sorted((real_data / images).glob(pattern))[:3]:
        case = path.name.removesuffix(".nii.gz").removesuffix("_0000")
        parts = {"image": path, "label": real_data / labels / f"{case}.nii.gz"}
        for part, source in parts.items():
            image = sitk.ReadImage(str(source))
            if modality == "CT":
                margin = [size // 4 for size in image.GetSize()]
                image = sitk.Crop(image, margin, margin)
            parts[part] = raw / f"{case}_{part}.nii.gz"
            sitk.WriteImage(image, str(parts[part]))
        files[case] = {"images": [str(parts["image"])], "label": str(parts["label"])}
    number = 11 if modality == "CT" else 12
    names = ("background", "one", "two", "three", "four")[: 5 if modality == "CT" else 3]
    content = {"channel_names": {"0": modality}, "labels": {name: value for value, name in enumerate(names)}}
    more = {"numTraining": 3, "file_ending": ".nii.gz", "dataset": files}
    write_json(raw / f"Dataset{number:03d}_{modality}" / "dataset.json", content | more)
    return f"Dataset{number:03d}_{modality}"


def finetune(dataset: str, modality: str, weights: Path, folder: Path) -> str:
    """Move the pool's plans of a modality to a labelled dataset, preprocess and train; the training's log."""
    moved = f"{PLANS}_{modality}_from900"
    preprocessed, number = folder / "preprocessed" / dataset, int(dataset[7:10])
    preprocessed.mkdir()
    shutil.copy(folder / "raw" / dataset / "dataset.json", preprocessed)
    write_json(preprocessed / "dataset_fingerprint.json", {})
    move_plans_between_datasets(900, number, f"{PLANS}_{modality}", moved)
    assert preprocess_cases(dataset, moved, CONFIGURATION, 1).failed == {}
    cases = PreprocessedDataset(dataset, moved, CONFIGURATION).cases()
    write_json(preprocessed / "splits_final.json", [{"train": cases[:2], "val": cases[2:]}])
    trainer = "FineTuneTrainer_1epoch_2iterations_seed1_noTTA"
    run_training(dataset, CONFIGURATION, 0, trainer, moved, str(weights), device=torch.device("cpu"))
    output = folder / "results" / dataset / f"{trainer}__{moved}__{CONFIGURATION}" / "fold_0"
    assert (output / "validation" / "summary.json").is_file()
    return next(output.glob("training_log*.txt")).read_text()


@pytest.mark.slow
def test_ct_and_mr_of_three_bodies_pretrain_together_and_both_are_fine_tuned(tmp_path, monkeypatch, real_data):
    set_folders(monkeypatch, tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", str(package_folder("nnunet_alice.trainers")))
    link_pool(real_data, tmp_path / "pool")
    run("import", "-i", tmp_path / "pool", "-d", 900, "-n", "Pool", "--channel", "any", "-np", 1)
    run("plan", "-d", 900, "-pl", "AlicePlannerSmall", "-np", 1, "--modalities", "folders")
    pool = PreprocessedDataset.find(900, PLANS, CONFIGURATION)
    for case, modality in pool.modalities.items():  # all are about as bright, whatever the scanner
        body = (pool.image(case)[0] > pool.image(case)[0].mean()).astype(bool)
        assert 0.2 < float(np.std(pool.image(case)[0][body])) < 5, (case, modality)
    run("anatomy", "-d", 900, "-p", PLANS, "-c", CONFIGURATION, "-np", 1)
    run_training("900", CONFIGURATION, "all", ALICE, PLANS, device=torch.device("cpu"))
    final = tmp_path / "results" / pool.name / f"{ALICE}__{PLANS}__{CONFIGURATION}" / "fold_all/checkpoint_final.pth"
    described = describe_checkpoint(final)
    assert described["modalities"] == "3 CT, 3 T1, 3 T1small"
    assert described["normalisation"].startswith("CT by CTNormalization, T1 by ZScoreNormalization")
    for modality in ("CT", "T1small"):
        dataset = write_target(real_data, tmp_path / "raw", modality)
        log = finetune(dataset, modality, final, tmp_path)
        assert "Starts from pretrained weights" in log
        scheme = read_json(tmp_path / "preprocessed" / dataset / f"{PLANS}_{modality}_from900.json")
        expected = ["CTNormalization" if modality == "CT" else "ZScoreNormalization"]
        assert scheme["configurations"][CONFIGURATION]["normalization_schemes"] == expected
