"""Dense prediction: what a probe on patches says about every place of an image (DrasCLR, Section 4.4).

The encoder slides over a case, patch by patch, and the probe's answers are a map a class. Cases with labels get the
model of the fold that held them out, others one of all labels.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.lungs import lung_mask
from nnunet_alice.anatomy.world import image_in_world
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.features.encoders import TrainedEncoder
from nnunet_alice.features.extraction import case_to_atlas, encode_patches, locations_of
from nnunet_alice.features.images import OpenedImage
from nnunet_alice.features.patches import PatchProbe
from nnunet_alice.files import atomic_write

#: Where a map can be made: around the encoder's landmarks, in the lungs of a CT, or in the body.
REGIONS = ("landmarks", "lungs", "body")


@dataclass(frozen=True)
class DenseMap:
    """Answers on a grid of points of a case.

    Attributes:
        values: (K, *grid) float32; 0 outside of the region.
        inside: grid, bool: the region.
        first_vox: (3,) voxel of the preprocessed array at grid point (0, 0, 0).
        step_vox: (3,) voxels between grid points.
    """

    values: np.ndarray
    inside: np.ndarray
    first_vox: np.ndarray
    step_vox: np.ndarray

    def on(self, to_voxels: Affine, shape: Sequence[int], number: int, outside: float = 0) -> np.ndarray:
        """Return one class' map on a different grid, linear in between.

        Args:
            to_voxels: from voxels of that grid to voxels of the preprocessed array, both (z, y, x).
            shape: (3,) of that grid.
            number: of the class.
            outside: value outside of the region.

        Returns:
            float32 (z, y, x). At grid points the very answers.
        """
        matrix = to_voxels.linear / self.step_vox[:, None]
        offset = (to_voxels.shift - self.first_vox) / self.step_vox

        def at(grid: np.ndarray, order: int) -> np.ndarray:
            return ndimage.affine_transform(grid, matrix, offset, tuple(shape), np.float32, order, mode="nearest")

        weight = at(self.inside.astype(np.float32), 1)
        values = at(self.values[number], 1) / np.maximum(weight, 1e-6)
        return np.where(at(self.inside.astype(np.float32), 0) > 0.5, values, np.float32(outside))


def dense_map(
    encoder: TrainedEncoder, opened: OpenedImage, fitted: PatchProbe, step_mm: float, region: str = "landmarks"
) -> DenseMap:
    """Slide the encoder over a region of a case, and ask the model at each step.

    Args:
        encoder: gives the features.
        opened: the case.
        fitted: the probe.
        step_mm: distance of the patches.
        region: one of `REGIONS`.

    Raises:
        InputError: the case's registration is poor, or it shows nothing of the region.
    """
    spacing, shape = np.asarray(encoder.spacing), np.asarray(opened.geometry.shape)
    step = np.minimum(np.maximum(1, np.round(step_mm / spacing)).astype(int), shape)
    first = (shape - 1) % step // 2
    counts = (shape - 1 - first) // step + 1
    points = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), axis=-1).reshape(-1, 3) * step + first
    affine = case_to_atlas(encoder, opened)
    inside = _in_region(encoder, opened, affine, points, region)
    if not inside.any():
        raise InputError(f"Case {opened.geometry.case} shows nothing of the region '{region}'.").about(
            case=opened.geometry.case, value=region
        )
    chosen = points[inside]
    features = encode_patches(encoder, opened.image, chosen, locations_of(encoder, affine, chosen))
    answers = fitted.answers(fitted.model_for(opened.geometry.case), features.astype(np.float64))
    values = np.zeros((answers.shape[1], len(points)), dtype=np.float32)
    values[:, inside] = answers.T
    return DenseMap(values.reshape(-1, *counts), inside.reshape(counts), first.astype(float), step.astype(float))


def _in_region(
    encoder: TrainedEncoder, opened: OpenedImage, affine: np.ndarray, points_vox: np.ndarray, region: str
) -> np.ndarray:
    """Return which points (N, 3) of a preprocessed array lie in the region: bool (N,)."""
    geometry = opened.geometry
    if region == "body":
        return geometry.in_body(points_vox.astype(float), 0)
    if region == "lungs":
        mask = lung_mask(np.asarray(opened.image[0]), encoder.spacing, axial_axis=geometry.axial_axis)
        return mask[tuple(points_vox.T)]
    if encoder.landmarks is None:
        raise NotPreparedError("This encoder was opened without its landmarks; choose the region body or lungs.")
    points_mm = Affine(affine).points(points_vox * np.asarray(encoder.spacing))
    distance = cKDTree(encoder.landmarks.points_mm).query(points_mm, p=np.inf)[0]
    return distance <= encoder.landmarks.patch_mm / 2


def write_maps(
    folder: str | os.PathLike, opened: OpenedImage, found: DenseMap, classes: Sequence[str]
) -> dict[str, Path]:
    """Write ``CASE_CLASS.nii.gz`` for each class, float32, on the grid of the case's file; 0 outside of the region.

    What file names may not hold becomes ``_``. Where two classes would share a file, all end in ``_NUMBER``, from 0.

    Returns:
        class -> its file.

    Raises:
        InputError: nnU-Net's reader kept no geometry of the file.
    """
    file_affine, shape = opened.file_grid()
    to_voxels = opened.world_affine().inverse() @ file_affine
    safe = [re.sub(r"[^\w.-]", "_", name) for name in classes]
    if len({name.casefold() for name in safe}) < len(safe):  # some disks hold no A beside a
        safe = [f"{name}_{number}" for number, name in enumerate(safe)]
    paths = {}
    for number, name in enumerate(classes):
        paths[name] = Path(folder) / f"{opened.geometry.case}_{safe[number]}.nii.gz"
        image = image_in_world(found.on(to_voxels, shape, number), file_affine)
        with atomic_write(paths[name]) as temporary:
            sitk.WriteImage(image, str(temporary), useCompression=True)
    return paths
