"""Raw datasets as `plan` finds them, and the command itself."""

import numpy as np
import SimpleITK as sitk

from nnunet_alice.cli.main import main
from nnunet_alice.files import write_json

UNLABELLED, TARGET = "Dataset900_Unlabelled", "Dataset004_Target"
CASES = ("a", "b", "c")


def write_dataset(folder, name, channels=("CT",), labels=("background", "body"), cases=CASES):
    """Raw dataset of random images with a `dataset` key, and a fingerprint as nnU-Net extracts it."""
    rng = np.random.default_rng(len(name))
    raw = folder / "nnUNet_raw" / name
    raw.mkdir(parents=True)
    files, shapes = {}, []
    for case in cases:
        shape = tuple(int(n) for n in rng.integers(24, 33, 3))
        images = []
        for channel in range(len(channels)):
            write_image(raw / f"{case}_{channel:04d}.nii.gz", rng.normal(100, 20, shape).astype(np.float32))
            images.append(f"{case}_{channel:04d}.nii.gz")
        write_image(raw / f"{case}.nii.gz", np.ones(shape, np.uint8))
        files[case] = {"images": images, "label": f"{case}.nii.gz"}
        shapes.append(shape)
    content = {
        "channel_names": {str(n): channel for n, channel in enumerate(channels)},
        "labels": {label: n for n, label in enumerate(labels)},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "dataset": files,
    }
    write_json(raw / "dataset.json", content)
    statistics = {"mean": 100.0, "median": 100.0, "std": 20.0, "min": 0.0, "max": 200.0}
    statistics |= {"percentile_00_5": 50.0, "percentile_99_5": 150.0 + len(labels)}
    fingerprint = {
        "spacings": [(1.0, 1.0, 1.0)] * len(cases),
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {str(n): statistics for n in range(len(channels))},
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(folder / "nnUNet_preprocessed" / name / "dataset_fingerprint.json", fingerprint)
    return raw


def write_image(path, array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def plan(*arguments):
    return main(["plan", "-d", "900", "-np", "1", *arguments])
