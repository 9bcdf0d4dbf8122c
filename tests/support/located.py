"""An atlas, images that register to it as is known, and files of them."""

import numpy as np
import SimpleITK as sitk

from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.coordinates.atlas_file import PortableAtlas
from support.plans import configuration, minimal_plans, normalised_by, resampled

SPACING = (3.0, 2.0, 2.5)


#: case mm -> atlas mm: a turn, a stretch and a shift
TO_ATLAS = np.array([[1.1, 0.1, 0, 5], [-0.1, 0.9, 0.05, -3], [0, 0, 1, 8], [0, 0, 0, 1.0]])


OBLIQUE = (0.98, -0.199, 0, 0.199, 0.98, 0, 0, 0, 1)


def bright_ball(shape=(24, 32, 40), seed=0) -> np.ndarray:
    """A textured ball in air, in a frame of zeros that nnU-Net crops away."""
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    values = np.where(sum(g**2 for g in grids) < 0.5, 100.0, -900.0)
    values += np.random.default_rng(seed).normal(scale=20, size=shape)
    framed = np.zeros(shape)
    framed[2:-3, 4:-1, 3:-6] = values[2:-3, 4:-1, 3:-6]
    return framed.astype(np.float32)


def write(path, array, direction=OBLIQUE):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.1, 1.9, 2.7))
    image.SetOrigin((-31.0, 12.0, 77.0))
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def make_atlas(reader="SimpleITKIO", transpose=(0, 1, 2), channels=1) -> PortableAtlas:
    full = configuration(
        SPACING, **normalised_by("ZScoreNormalization", channels, masked=True), **resampled(3, ("data", "seg"))
    )
    statistics: dict[str, dict] = {str(c): {} for c in range(channels)}
    plans = minimal_plans(
        "Dataset900_Unlabelled",
        {"3d_fullres": full},
        transpose,
        image_reader_writer=reader,
        foreground_intensity_properties_per_channel=statistics,
    )
    names = {str(c): "MR" for c in range(channels)}
    described = {"channel_names": names, "labels": {"background": 0, "body": 1}, "file_ending": ".nii.gz"}
    geometry = compute_geometry("atlas", bright_ball(seed=9)[None], SPACING)
    return PortableAtlas(geometry, plans=plans, configuration="3d_fullres", dataset_json=described)
