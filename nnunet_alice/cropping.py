"""Crops centred on a point, padded with zeros where the volume ends, as nnU-Net's data loader pads."""

from collections.abc import Sequence

import numpy as np

from nnunet_alice.dataset import LazyImage


def crop_bounds(centre_vox: Sequence[float] | np.ndarray, patch_size: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a crop's first voxel on every axis; its voxel ``patch // 2`` is the nearest to the centre.

    Args:
        centre_vox: (3,) centre in voxels, (z, y, x).
        patch_size: (3,) crop size in voxels.
    """
    return np.floor(np.asarray(centre_vox, dtype=float) + 0.5).astype(int) - np.asarray(patch_size) // 2


def crop_centred(
    image: LazyImage, centre_vox: Sequence[float] | np.ndarray, patch_size: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Crop ``patch_size`` voxels around a point; only the blocks touched are read from a lazily opened image.

    Args:
        image: (C, z, y, x), numpy array or blosc2 array.
        centre_vox: (3,) centre in voxels, (z, y, x); may lie at or beyond the border.
        patch_size: (3,) crop size in voxels.

    Returns:
        (C, *patch_size) float32, zero outside the volume.
    """
    lower = crop_bounds(centre_vox, patch_size)
    upper = lower + np.asarray(patch_size)
    shape = np.asarray(image.shape[1:])
    inside_lower, inside_upper = np.clip(lower, 0, shape), np.clip(upper, 0, shape)
    crop = np.zeros((image.shape[0], *patch_size), dtype=np.float32)
    if np.all(inside_upper > inside_lower):
        source = (slice(None), *map(slice, inside_lower.tolist(), inside_upper.tolist()))
        target = (slice(None), *map(slice, (inside_lower - lower).tolist(), (inside_upper - lower).tolist()))
        crop[target] = image[source]
    return crop


def share_inside(points_vox: np.ndarray, shape: Sequence[int], patch_size: Sequence[int]) -> np.ndarray:
    """Return the share of each crop's voxels that lie inside the volume, of what could lie inside at best.

    A volume smaller than the patch can fill only part of it; the share is taken of that part, so that a point in
    the middle always gives 1.

    Args:
        points_vox: (N, 3) centres in voxels, (z, y, x).
        shape: (3,) shape of the volume.
        patch_size: (3,) crop size in voxels.

    Returns:
        (N,) in [0, 1].
    """
    patch = np.asarray(patch_size)
    lower = np.floor(np.asarray(points_vox, dtype=float) + 0.5) - patch // 2
    covered = np.clip(np.minimum(lower + patch, shape) - np.maximum(lower, 0), 0, None)
    return np.prod(covered / np.minimum(patch, shape), axis=1)
