"""Which places of a case decided: the change of the prediction where a block is covered."""

import os
from itertools import product
from typing import Any

import numpy as np
import torch

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.pictures.targets import draw_occlusion
from nnunet_alice.targets.tasks import Task
from nnunet_alice.targets.windows import CaseFeatures, CasePredictor, crop_at

#: blocks along an axis of a window
_BLOCKS = 6


@torch.no_grad()
def occlusion(
    predictor: CasePredictor, task: Task, image: Any, geometry: CaseGeometry
) -> tuple[np.ndarray, tuple[int, ...]]:
    """How much the prediction falls when a block of the body is covered by the body's mean.

    Only the windows that see the block are computed again.

    Args:
        predictor: of the network.
        task: of the network; :meth:`Task.shown` says which number falls.
        image: (C, z, y, x).
        geometry: of the case.

    Returns:
        (blocks...) float32, NaN outside the body, and the size of a block in voxels, (z, y, x).
    """
    features = predictor.case_features(image, geometry)
    whole = predictor.outputs(features.mean)
    before = task.shown(whole, whole[0])[0]
    size = np.maximum(1, predictor.patch_size // _BLOCKS)
    shape = -(-np.asarray(geometry.shape) // size)
    change = np.full(tuple(shape), np.nan, dtype=np.float32)
    body, factors = geometry.body, np.asarray(geometry.factors)
    fill = _body_mean(image, geometry)
    for block in product(*map(range, shape)):
        start = np.asarray(block) * size
        cells = tuple(slice(a, b) for a, b in zip(start // factors, -(-(start + size) // factors), strict=True))
        if body[cells].any():
            covered = _covered(predictor, features, image, start, size, fill)
            change[block] = before - task.shown(predictor.outputs(covered), whole[0])[0]
    return change, tuple(size.tolist())


def draw_case(
    predictor: CasePredictor, task: Task, image: Any, geometry: CaseGeometry, path: str | os.PathLike
) -> None:
    """Draw the occlusion picture of a case."""
    change, block = occlusion(predictor, task, image, geometry)
    draw_occlusion(np.asarray(image[0]), change, block, path, title=geometry.case)


def _covered(
    predictor: CasePredictor,
    features: CaseFeatures,
    image: Any,
    start: np.ndarray,
    size: np.ndarray,
    fill: np.ndarray,
) -> torch.Tensor:
    """(1, F) features of the case with a block covered."""
    patch = predictor.patch_size
    seeing = [n for n, w in enumerate(features.starts) if ((w < start + size) & (start < w + patch)).all()]

    def crops():
        for number in seeing:
            window = features.starts[number]
            crop = crop_at(image, window, patch)
            first, last = np.maximum(start - window, 0), np.minimum(start + size - window, patch)
            crop[(slice(None), *(slice(a, b) for a, b in zip(first, last, strict=True)))] = fill
            yield crop

    if not seeing:
        return features.mean
    changed = features.features.clone()
    changed[seeing] = predictor.window_features(crops())
    return changed.mean(dim=0, keepdim=True)


def _body_mean(image: Any, geometry: CaseGeometry) -> np.ndarray:
    """(C, 1, 1, 1) mean of every channel in the body, by the voxels in the middle of its cells."""
    factors = geometry.factors
    thin = tuple(slice(min(f // 2, n - 1), None, f) for f, n in zip(factors, geometry.shape, strict=True))
    values = np.asarray(image[:])[(slice(None), *thin)]
    body = geometry.body[tuple(map(slice, values.shape[1:]))]
    return values[:, body].mean(axis=1).reshape(-1, 1, 1, 1)
