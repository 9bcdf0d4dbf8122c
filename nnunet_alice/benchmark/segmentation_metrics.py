"""How well a segmentation agrees with the truth: Dice, surface Dice, 95th percentile of the surface distance.

A mask's surface are its voxels with a background voxel (or the end of the image) at one of their 6 faces; distances are
Euclidean, in mm, between centres of surface voxels. Masks are (z, y, x) bool arrays, spacings (z, y, x) in mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: in the order in which reports show them
METRICS = ("dice", "surface_dice", "hd95_mm")


@dataclass(frozen=True)
class Agreement:
    """Agreement of a predicted with a true mask.

    Attributes:
        dice: ``2 |A & B| / (|A| + |B|)``; NaN if both are empty (as nnU-Net does it).
        surface_dice: share of both surfaces' voxels that lie within the tolerance of the other surface; 0 if one mask
            is empty, NaN if both are. It counts voxels, not areas of surface elements.
        hd95_mm: larger of the two directed 95th percentiles of the surface distance; the image's diagonal if one mask
            is empty, NaN if both are.
    """

    dice: float
    surface_dice: float
    hd95_mm: float


def agreement(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = 2.0
) -> Agreement:
    """Return all metrics of a pair of masks.

    Args:
        prediction: (z, y, x) bool.
        truth: (z, y, x) bool.
        spacing_mm: (z, y, x).
        tolerance_mm: of the surface Dice.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction has shape {prediction.shape} and truth {truth.shape}.")
    both = int(prediction.sum()) + int(truth.sum())
    if both == 0:
        return Agreement(np.nan, np.nan, np.nan)
    dice = 2 * int((prediction & truth).sum()) / both
    if not prediction.any() or not truth.any():
        diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing_mm)))
        return Agreement(dice, 0.0, diagonal)
    there, back = surface_distances(prediction, truth, spacing_mm)
    within = int((there <= tolerance_mm).sum() + (back <= tolerance_mm).sum())
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return Agreement(dice, within / (len(there) + len(back)), hd95)


def surface_distances(one: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance in mm of every surface voxel of each mask to the other's surface, in the order of the voxels.

    Args:
        one: (z, y, x) bool, not empty.
        other: (z, y, x) bool, not empty.
        spacing_mm: (z, y, x).
    """
    box = ndimage.find_objects((one | other).astype(np.uint8))[0]  # nothing beyond it can matter
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (one, other)]
    fields = [ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces]
    return fields[1][surfaces[0]], fields[0][surfaces[1]]
