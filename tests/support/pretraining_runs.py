"""Small preprocessed datasets of phantoms, with plans that nnU-Net's trainers take, for tests of trainers."""

import copy
import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_alice.phantoms import make_subject, render
from nnunet_alice.training.settings import changed
from support.plans import architecture, configuration, minimal_plans, normalised_by

DATASET = "Dataset900_Small"
PLANS = "nnUNetPlans"


def write_run(
    base: Path,
    images: Mapping[str, np.ndarray],
    *,
    spacing: Sequence[float] = (16.0, 16.0, 16.0),
    patch_size: Sequence[int] = (16, 16, 16),
    batch_size: int = 2,
    family: str = "PlainConvUNet",
    strides: Sequence = ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    features: Sequence[int] = (4, 6, 8),
) -> Path:
    """Write images (C, z, y, x) as a preprocessed dataset below ``base`` (``nnUNet_preprocessed``).

    Returns:
        the dataset's folder.
    """
    folder = base / DATASET
    cases = folder / f"{PLANS}_3d_fullres"
    cases.mkdir(parents=True)
    channels = next(iter(images.values())).shape[0]
    full = configuration(
        spacing,
        patch_size,
        batch_size=batch_size,
        median_image_size_in_voxels=np.median([image.shape[1:] for image in images.values()], axis=0).tolist(),
        architecture=architecture(family, strides, features),
        **normalised_by("CTNormalization", channels),
    )
    plans = minimal_plans(DATASET, {"2d": {**full, "patch_size": list(patch_size[1:])}, "3d_fullres": full})
    dataset = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0, "body": 1},
        "numTraining": len(images),
        "file_ending": ".nii.gz",
    }
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "dataset_fingerprint.json").write_text("{}")
    for case, image in images.items():
        nnUNetDatasetBlosc2.save_case(
            image.astype(np.float32),
            np.zeros((1, *image.shape[1:]), dtype=np.int16),
            {"spacing": list(spacing)},
            str(cases / case),
            chunks=image.shape,
            blocks=image.shape,
            chunks_seg=(1, *image.shape[1:]),
            blocks_seg=(1, *image.shape[1:]),
        )
    return folder


def phantom_images(count: int, channels: int = 1, spacing_mm=16.0) -> dict[str, np.ndarray]:
    """Normalised phantoms (C, z, y, x); further channels are the first one inverted, darker each."""
    images = {}
    for seed in range(count):
        image = (np.clip(render(make_subject(seed), spacing_mm).image, -1000, 600) + 200) / 400
        images[f"case{seed}"] = np.stack([image * (-0.8) ** channel for channel in range(channels)])
    return images


def with_settings(base: type[Any], changes: Mapping[str, object], name: str | None = None, **attributes) -> type:
    """A trainer with some settings changed, by their dotted paths."""
    return type(name or base.__name__, (base,), {"settings": changed(base.settings, changes), **attributes})


def with_method(base: type[Any], **overrides) -> type:
    """The same trainer with a method some of whose members are others: functions of the method, by name."""
    method_class = type(base.method_class.__name__, (base.method_class,), overrides)
    return type(base.__name__, (base,), {"method_class": method_class})


def poisoned(base: type, when=lambda progress, training: True, everything: bool = False) -> type:
    """The same trainer whose batches hold NaN when ``when(progress, training)`` says so: in one voxel or in all."""

    def compute(self, batch, progress, training):
        if when(progress, training):
            batch.views[(slice(None) if everything else (0, 0, 0, 0, 0))] = math.nan
        return base.method_class.compute(self, batch, progress, training)

    return with_method(base, compute=compute)


def make_trainer(trainer_class: type, base: Path, fold="all", configuration: str = "3d_fullres", **plans_too):
    """A trainer on the dataset that :func:`write_run` wrote, as ``nnUNetv2_train -device cpu`` makes it."""
    folder = base / DATASET
    plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False} | plans_too
    dataset = json.loads((folder / "dataset.json").read_text())
    return trainer_class(plans, configuration, fold, dataset, torch.device("cpu"))


def run(trainer) -> Path:
    """What nnUNetv2_train calls; returns the folder of the run."""
    trainer.run_training()
    trainer.perform_actual_validation()
    return Path(trainer.output_folder)


def training_log(folder: str | Path) -> str:
    """nnU-Net's logs of a folder one after the other: every trainer that is made begins one, named by the second."""
    return "".join(path.read_text() for path in sorted(Path(folder).glob("training_log*.txt")))


def finished_rows(folder: Path, *expected: str) -> list[dict[str, str]]:
    """Rows of a finished run's ``metrics.csv``; all files of ``expected`` are there, and nothing to continue from."""
    files = {path.name for path in folder.iterdir()}
    assert {"checkpoint_final.pth", "metrics.csv", "progress.png", *expected} <= files
    assert "checkpoint_latest.pth" not in files
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


class Killed(BaseException):
    """Stands for a kill: nothing in the trainer catches it."""


def whole_and_resumed(trainer_class: type, base: Path, killed_in: int, look=lambda trainer: None) -> tuple[dict, dict]:
    """Final checkpoints of a run and of one that was killed at the start of epoch ``killed_in`` and continued.

    Args:
        trainer_class: saves after every epoch before ``killed_in``.
        base: as of :func:`make_trainer`.
        killed_in: number of the epoch.
        look: called with the continued trainer when it has loaded its checkpoint.
    """
    checkpoints = []
    for kill in (False, True):
        trainer = make_trainer(trainer_class, base)
        if kill:
            kill_at(trainer, killed_in)
            trainer = make_trainer(trainer_class, base, continue_training=True)
            trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
            assert trainer.current_epoch == killed_in
            look(trainer)
        trainer.run_training()
        final = Path(trainer.output_folder) / "checkpoint_final.pth"
        checkpoints.append(torch.load(final, weights_only=True))
        final.unlink()
    return tuple(checkpoints)


def steps_around_a_bad_one(trainer) -> dict:
    """A step of training, one on NaN alone, and one more.

    Returns:
        state of model and optimiser after each: ``first``, ``bad`` and ``next``.
    """
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    states = {}
    for number, name in enumerate(("first", "bad", "next")):
        batch = next(trainer.dataloader_train)
        if name == "bad":
            batch.views[:] = math.nan
        trainer.train_step(batch)
        assert trainer.step == number + 1
        states[name] = copy.deepcopy(
            {**trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()["state"]}
        )
    return states


def kill_at(trainer, epoch: int) -> None:
    """Train until the start of an epoch."""
    start = trainer.on_train_epoch_start

    def kill_or_start():
        if trainer.current_epoch == epoch:
            raise Killed
        start()

    trainer.on_train_epoch_start = kill_or_start
    with pytest.raises(Killed):
        trainer.run_training()


def without_times(history: list[dict]) -> list[dict]:
    """The rows of a run's history that the same run has again."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "views_per_second")} for row in history]


def same_content(one, two) -> bool:
    """Equality to the bit of nested checkpoints."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two) if one.dtype != torch.float32 else one.numpy().tobytes() == two.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_content(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same_content, one, two))
    return one == two
