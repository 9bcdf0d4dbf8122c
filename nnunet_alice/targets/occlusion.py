"""Which places of a case decided: the change of the prediction where a block is covered."""

import os
from typing import Any

import numpy as np
import torch

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.pictures.targets import draw_occlusion
from nnunet_alice.targets.tasks import Task
from nnunet_alice.targets.windows import CaseFeatures, CasePredictor, crop_at

#: most blocks along an axis of a window, and windows that a picture may cost
_FINEST, _MAX_WINDOWS = 6, 150


@torch.no_grad()
def occlusion(
    predictor: CasePredictor, task: Task, image: Any, geometry: CaseGeometry, max_windows: int = _MAX_WINDOWS
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return how much the prediction falls when a block of the body is covered by the body's mean.

    Only the windows that see a block are computed again. Blocks are as small as the number of windows allows.

    Args:
        predictor: of the network.
        task: of the network; :meth:`Task.shown` says which number falls.
        image: (C, z, y, x).
        geometry: of the case.
        max_windows: that are computed, as long as a block is no larger than a window.

    Returns:
        (blocks...) float32, NaN outside the body, and the size of a block in voxels, (z, y, x).
    """
    features = predictor.case_features(image, geometry)
    whole = predictor.outputs(features.mean)
    before = task.shown(whole, whole[0])[0]
    for count in range(_FINEST, 0, -1):
        size = np.maximum(1, predictor.patch_size // count)
        blocks = {
            block: _seeing(features, np.asarray(block) * size, size, predictor.patch_size)
            for block in _in_body(geometry, size)
        }
        if sum(map(len, blocks.values())) <= max_windows:
            break
    change = np.full(-(-np.asarray(geometry.shape) // size), np.nan, dtype=np.float32)
    fill = _body_mean(image, geometry)
    for block, windows in blocks.items():
        covered = features.features.clone()
        if windows:
            start = np.asarray(block) * size
            covered[windows] = predictor.window_features(
                _covered(
                    crop_at(image, features.starts[n], predictor.patch_size), start - features.starts[n], size, fill
                )
                for n in windows
            )
        change[block] = before - task.shown(predictor.outputs(covered.mean(dim=0, keepdim=True)), whole[0])[0]
    return change, tuple(size.tolist())


def draw_case(
    predictor: CasePredictor, task: Task, image: Any, geometry: CaseGeometry, path: str | os.PathLike
) -> None:
    """Draw the occlusion picture of a case."""
    change, block = occlusion(predictor, task, image, geometry)
    draw_occlusion(np.asarray(image[0]), change, block, path, title=geometry.case)


def _in_body(geometry: CaseGeometry, size: np.ndarray) -> list[tuple[int, ...]]:
    """Return blocks that hold some of the body."""
    body, factors = geometry.body, np.asarray(geometry.factors)
    found = []
    for block in np.ndindex(*-(-np.asarray(geometry.shape) // size)):
        first, last = np.asarray(block) * size // factors, -(-(np.asarray(block) + 1) * size // factors)
        if body[tuple(map(slice, first, last))].any():
            found.append(block)
    return found


def _seeing(features: CaseFeatures, start: np.ndarray, size: np.ndarray, patch: np.ndarray) -> list[int]:
    """Return numbers of the windows that see some of a block."""
    seen = (features.starts < start + size) & (start < features.starts + patch)
    return np.flatnonzero(seen.all(axis=1)).tolist()


def _covered(crop: np.ndarray, start: np.ndarray, size: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """Copy of a window in which a block is covered; ``start`` is relative to the window."""
    crop = crop.copy()  # it may be a view of the image
    first, last = np.maximum(start, 0), np.minimum(start + size, crop.shape[1:])
    block = (slice(None), *(slice(a, b) for a, b in zip(first, last, strict=True)))
    crop[block] = fill
    return crop


def _body_mean(image: Any, geometry: CaseGeometry) -> np.ndarray:
    """Return (C, 1, 1, 1) mean of every channel in the body, by the voxels in the middle of its cells."""
    factors = geometry.factors
    thin = tuple(slice(min(f // 2, n - 1), None, f) for f, n in zip(factors, geometry.shape, strict=True))
    values = np.stack([channel[thin] for channel in np.asarray(image[:])])
    body = geometry.body[tuple(map(slice, values.shape[1:]))]
    return values[:, body].mean(axis=1).reshape(-1, 1, 1, 1)
