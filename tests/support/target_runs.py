"""A small dataset whose cases differ by what is to be predicted, and trainers of a few steps on it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from nnunetv2.run import run_training
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_alice.cli.main import main
from support.labelled_runs import DATASET, SPACING, make_finetuner, write_labelled

SHAPE = (22, 24, 20)


def bright_volume(seed: int) -> tuple[np.ndarray, float]:
    """Image (1, z, y, x) of a textured ball in dark air, and how coarse its texture is, 0 to 1."""
    rng = np.random.default_rng(seed)
    coarse = float(rng.random())
    axes = [np.arange(n) - (n - 1) / 2 for n in SHAPE]
    distance = np.sqrt(sum(g**2 for g in np.meshgrid(*axes, indexing="ij")))
    noise = rng.normal(size=SHAPE)
    texture = noise + 3 * coarse * np.sign(np.sin(np.arange(SHAPE[2]) * 1.5))
    image = np.where(distance < 9, 2.0 + 0.4 * texture, -2.0 + 0.02 * noise)
    return image[None].astype(np.float32), coarse


def write_target_dataset(base: Path, count: int = 12, patch=(16, 16, 16)) -> Path:
    """Write ``count`` cases below ``base`` and their values as ``labels.csv`` beside ``base``; returns the folder.

    ``value`` is what the image shows; ``kind`` is ``coarse`` or ``fine``; ``left`` and ``right`` are labels; ``time``
    and ``event`` go with the value; every two cases are of one ``patient``.
    """
    folder = write_labelled(base, 0)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = list(patch)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    rows = []
    for number in range(count):
        image, value = bright_volume(number)
        write_case(folder, f"case{number:02d}", image)
        rows.append({"id": f"case{number:02d}", "value": value, "kind": "coarse" if value > 0.5 else "fine"})
        rows[-1] |= {
            "left": int(value > 0.3),
            "right": int(value > 0.6),
            "time": 5 - 4 * value,
            "event": number % 3 < 2,
        }
        rows[-1] |= {"patient": f"p{number // 2}"}
    pd.DataFrame(rows).astype({"event": int}).to_csv(base.parent / "labels.csv", index=False)
    return folder


def write_case(folder: Path, case: str, image: np.ndarray) -> None:
    """Write one preprocessed case, whose voxels equal the raw ones."""
    shape = image.shape[1:]
    properties = {
        "sitk_stuff": {"spacing": SPACING[::-1], "origin": (0, 0, 0), "direction": tuple(np.eye(3).ravel())},
        "spacing": list(SPACING),
        "class_locations": {},
    }
    nnUNetDatasetBlosc2.save_case(
        image,
        np.zeros((1, *shape), np.int16),
        properties,
        str(folder / "nnUNetPlans_3d_fullres" / case),
        chunks=image.shape,
        blocks=image.shape,
        chunks_seg=(1, *shape),
        blocks_seg=(1, *shape),
    )


def write_raw(folder: Path, case: str, image: np.ndarray, orientation: str = "LPS") -> None:
    """Write an image (C, z, y, x) as raw files, stored in some orientation."""
    folder.mkdir(parents=True, exist_ok=True)
    for channel, values in enumerate(image):
        raw = sitk.GetImageFromArray(values)
        raw.SetSpacing(SPACING[::-1])
        sitk.WriteImage(sitk.DICOMOrient(raw, orientation), str(folder / f"{case}_{channel:04d}.nii.gz"))


def store(folder: Path, *words) -> int:
    """``nnunet_alice targets`` on the dataset."""
    table = folder.parent.parent / "labels.csv"
    return main(["targets", "-d", DATASET, "--table", str(table), *map(str, words)])


def start(kind: type, folder: Path, weights: Path | None = None, **plans_too):
    """A trainer as ``nnUNetv2_train`` has it before training."""
    trainer = make_finetuner(kind, folder, **plans_too)
    trainer.initialize()
    if weights is not None:
        run_training.load_pretrained_weights(trainer.network, str(weights), verbose=True)
    return trainer
