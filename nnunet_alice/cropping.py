"""Crops centred on a point, padded with zeros where the volume ends, as nnU-Net's data loader pads."""

from collections.abc import Sequence

import numpy as np


def crop_bounds(centre_vox: Sequence[float] | np.ndarray, patch_size: Sequence[int] | np.ndarray) -> np.ndarray:
    """First voxel of the crop on every axis; voxel ``patch // 2`` of the crop is the voxel nearest to the centre.

    Args:
        centre_vox: (3,) centre in voxels, (z, y, x).
        patch_size: (3,) crop size in voxels.
    """
    return np.floor(np.asarray(centre_vox, dtype=float) + 0.5).astype(int) - np.asarray(patch_size) // 2


def crop_centred(image, centre_vox: Sequence[float] | np.ndarray, patch_size: Sequence[int] | np.ndarray) -> np.ndarray:
    """Crop ``patch_size`` voxels around a point; only the blocks touched are read from a lazily opened image.

    Args:
        image: (C, z, y, x), numpy array or blosc2 array.
        centre_vox: (3,) centre in voxels, (z, y, x); may lie at or beyond the border.
        patch_size: (3,) crop size in voxels.

    Returns:
        (C, *patch_size) float32, zero outside the volume.
    """
    source, target = part_inside(crop_bounds(centre_vox, patch_size), patch_size, image.shape[1:])
    crop = np.zeros((image.shape[0], *patch_size), dtype=np.float32)
    if crop[(slice(None), *target)].size:
        crop[(slice(None), *target)] = image[(slice(None), *source)]
    return crop


def part_inside(
    first_vox: np.ndarray, patch_size: Sequence[int] | np.ndarray, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return which voxels of a volume a crop shows, and where they lie in the crop; empty slices where it shows none.

    Args:
        first_vox: (3,) int, first voxel of the crop, (z, y, x); may lie outside.
        patch_size: (3,) crop size in voxels.
        shape: (3,) shape of the volume.
    """
    lower, upper = (np.clip(end, 0, shape) for end in (first_vox, first_vox + np.asarray(patch_size)))
    return tuple(map(slice, lower.tolist(), upper.tolist())), tuple(
        map(slice, (lower - first_vox).tolist(), (upper - first_vox).tolist())
    )


def share_inside(points_vox: np.ndarray, shape: Sequence[int], patch_size: Sequence[int]) -> np.ndarray:
    """Share of each crop's voxels that lie inside the volume, of what could lie inside at best.

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
