"""BTCV's folder with 30 tiny made volumes."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_alice.importing.btcv import CASE_NUMBERS

SHAPE = (4, 6, 5)


def write(
    path: Path, array: np.ndarray, spacing=(0.7, 0.7, 3.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), origin=(0, 0, 0)
) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def label_of(number: int) -> np.ndarray:
    """Every organ once, at places that differ from case to case."""
    values = np.zeros(np.prod(SHAPE), dtype=np.uint8)
    values[:14] = np.arange(14)
    return np.random.default_rng(number).permutation(values).reshape(SHAPE)


def write_raw_data(folder: Path) -> Path:
    """Write a ``RawData`` folder of 30 labelled and two test images."""
    for number in CASE_NUMBERS:
        write(folder / f"Training/img/img{number:04d}.nii.gz", np.full(SHAPE, number, dtype=np.int16))
        write(folder / f"Training/label/label{number:04d}.nii.gz", label_of(number))
    for number in (61, 62):
        write(folder / f"Testing/img/img{number:04d}.nii.gz", np.zeros(SHAPE, dtype=np.int16))
    return folder
