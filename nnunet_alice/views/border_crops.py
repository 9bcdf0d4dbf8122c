"""Crops of volumes that repeat the border, one by one or several in one reading."""

from collections.abc import Sequence

import numpy as np

from nnunet_alice.cropping import crop_bounds


def crop_with_border(image, centre_vox: Sequence[float] | np.ndarray, size: Sequence[int] | np.ndarray) -> np.ndarray:
    """Crop ``size`` voxels around a point of the volume; beyond its end its outermost voxels are repeated.

    Unlike zeros, that does not draw an edge where a field of view happens to end, by which subjects could be told
    apart without looking at anatomy.

    Args:
        image: (C, z, y, x), numpy or blosc2 array; only what is needed is read.
        centre_vox: (3,) point, (z, y, x); voxel ``size // 2`` of the crop is the voxel nearest to it.
        size: (3,) crop size in voxels.
    """
    lower = crop_bounds(centre_vox, size)
    wanted = [np.clip(np.arange(f, f + n), 0, end - 1) for f, n, end in zip(lower, size, image.shape[1:], strict=True)]
    ranges = [slice(int(index[0]), int(index[-1]) + 1) for index in wanted]
    part = np.asarray(image[(slice(None), *ranges)], dtype=np.float32)
    for axis, (index, read) in enumerate(zip(wanted, ranges, strict=True), start=1):
        if part.shape[axis] < len(index):
            part = part.take(index - read.start, axis=axis)
    return part


def crops_with_border(image, centres_vox: Sequence[np.ndarray], size: Sequence[int]) -> list[np.ndarray]:
    """Crop around several points as :func:`crop_with_border` does; read all at once where that is less to read.

    Args:
        image: as there.
        centres_vox: points (3,), (z, y, x).
        size: as there.
    """
    end = np.asarray(image.shape[1:])
    lower = np.stack([crop_bounds(centre, size) for centre in centres_vox])
    first, last = (np.clip(bound, 0, end - 1) for bound in (lower, lower + np.asarray(size) - 1))
    start, stop = first.min(axis=0), last.max(axis=0) + 1
    if np.prod(stop - start) >= np.prod(last + 1 - first, axis=1).sum():
        return [crop_with_border(image, centre, size) for centre in centres_vox]
    part = np.asarray(image[(slice(None), *map(slice, start.tolist(), stop.tolist()))], dtype=np.float32)
    return [crop_with_border(part, np.asarray(centre) - start, size) for centre in centres_vox]
