"""A small labelled dataset, preprocessed and with ground truth, on which nnU-Net trains and validates in seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import nn

from nnunet_alice.trainers import finetuning
from support.plans import architecture, configuration, minimal_plans, normalised_by, resampled
from support.small_datasets import set_folders

DATASET = "Dataset901_Labelled"
PLANS = "nnUNetPlans"
SHAPE = (18, 20, 16)
SPACING = (2.0, 1.0, 1.5)


def labelled_volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, z, y, x) and labels (1, z, y, x): a bright box (1) beside a dark one (2), at chance places."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, dtype=np.int16)
    z, y, x = rng.integers(2, 6, 3)
    labels[z : z + 8, y : y + 9, x : x + 4] = 1
    labels[z : z + 8, y : y + 9, x + 4 : x + 8] = 2
    image = np.choose(labels, (0.0, 2.0, -2.0)) + rng.normal(scale=0.3, size=SHAPE)
    return image[None].astype(np.float32), labels[None]


def write_labelled(
    base: Path,
    count: int,
    dataset: str = DATASET,
    family: str = "PlainConvUNet",
    features=(4, 6, 8),
) -> Path:
    """Write ``count`` cases below ``base`` (``nnUNet_preprocessed``), with ``gt_segmentations``; returns the folder.

    Preprocessed arrays equal the raw ones: no cropping, no resampling.
    """
    folder = base / dataset
    cases = folder / f"{PLANS}_3d_fullres"
    for part in (cases, folder / "gt_segmentations"):
        part.mkdir(parents=True)
    full = configuration(
        SPACING,
        median_image_size_in_voxels=list(SHAPE),
        architecture=architecture(family, ((1, 1, 1), (2, 2, 2), (2, 2, 2)), features),
        **normalised_by("NoNormalization"),
        **resampled(),
    )
    statistics: dict[str, dict] = {"0": {}}
    plans = minimal_plans(dataset, {"3d_fullres": full}, foreground_intensity_properties_per_channel=statistics)
    names = [f"case{number:02d}" for number in range(count)]
    content = {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, "front": 1, "back": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "dataset_fingerprint.json").write_text("{}")
    for seed, name in enumerate(names):
        image, labels = labelled_volume(seed)
        properties = {
            "sitk_stuff": {"spacing": SPACING[::-1], "origin": (0, 0, 0), "direction": tuple(np.eye(3).ravel())},
            "spacing": list(SPACING),
            "shape_before_cropping": SHAPE,
            "shape_after_cropping_and_before_resampling": SHAPE,
            "bbox_used_for_cropping": [[0, size] for size in SHAPE],
            "class_locations": {label: np.argwhere(labels == label) for label in (1, 2)},
        }
        size = (1, *SHAPE)
        nnUNetDatasetBlosc2.save_case(
            image, labels, properties, str(cases / name), chunks=size, blocks=size, chunks_seg=size, blocks_seg=size
        )
        truth = sitk.GetImageFromArray(labels[0].astype(np.uint8))
        truth.SetSpacing(SPACING[::-1])
        sitk.WriteImage(truth, str(folder / "gt_segmentations" / f"{name}.nii.gz"))
    return folder


def write_images(folder: Path, count: int) -> None:
    """Write the same cases' images as raw files ``case00_0000.nii.gz``."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image = sitk.GetImageFromArray(labelled_volume(seed)[0][0])
        image.SetSpacing(SPACING[::-1])
        sitk.WriteImage(image, str(folder / f"case{seed:02d}_0000.nii.gz"))


def write_splits(folder: Path, *splits: tuple[list[str], list[str]]) -> None:
    """Write ``splits_final.json`` of (train, val) lists."""
    content = [{"train": train, "val": val} for train, val in splits]
    (folder / "splits_final.json").write_text(json.dumps(content))


def make_finetuner(trainer_class: type, folder: Path, fold=0, **plans_too):
    """A trainer on the dataset in ``folder``, as ``nnUNetv2_train -device cpu`` makes it."""
    import torch

    plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False} | plans_too
    dataset = json.loads((folder / "dataset.json").read_text())
    return trainer_class(plans, "3d_fullres", fold, dataset, torch.device("cpu"))


def stay_in_process(monkeypatch) -> None:
    """Let nnU-Net use threads instead of spawned processes, and draw no curves: seconds instead of minutes."""
    import multiprocessing
    from multiprocessing.pool import ThreadPool
    from types import SimpleNamespace

    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)


def train_briefly(base: Path) -> tuple[Path, nn.Module]:
    """Train fold 0 of two cases from scratch for three steps; return the model's folder and the trained network."""
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, base)
        stay_in_process(patch)
        folder = write_labelled(base / "preprocessed", 2, family="ResidualEncoderUNet")
        write_splits(folder, (["case00"], ["case01"]))
        trainer = make_finetuner(finetuning.FineTuneTrainer_scratch_1epochs_3iterations_seed1, folder)
        trainer.run_training()
    trainer.set_deep_supervision_enabled(False)
    return Path(trainer.output_folder).parent, trainer.network.eval()
