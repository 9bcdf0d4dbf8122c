"""Weights of classes in the cross-entropy: short runs on few labels find small organs only so."""

from collections.abc import Iterable, Sequence

import numpy as np

#: added to every share of voxels, so that an absent class does not weigh without bounds
_FLOOR = 1e-4


def count_voxels(segmentations: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """Return the number of voxels of each class, (num_classes,) int64.

    Args:
        segmentations: arrays of whole numbers, one in memory at a time. Below 0 is background, as nnU-Net marks what
            it cropped away; from ``num_classes`` on (the ignore label) is left out.
        num_classes: with the background.
    """
    counts = np.zeros(num_classes, dtype=np.int64)
    for segmentation in segmentations:
        values = np.maximum(segmentation, 0).astype(np.int64).ravel()
        counts += np.bincount(values, minlength=num_classes)[:num_classes]
    return counts


def rarity(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a weight for each class: one over the root of its share of voxels, 1 on average over all voxels.

    Args:
        counts: (C,) voxels of each class.

    Returns:
        (C,) float32.
    """
    share = np.asarray(counts, dtype=float) / max(1, np.sum(counts))
    weights = (share + _FLOOR) ** -0.5
    return (weights / max((weights * share).sum(), _FLOOR)).astype(np.float32)
