"""A whole case through a network that sees windows: where they lie, and the mean of their features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.targets.network import PooledEncoder
from nnunet_alice.views.border_crops import crop_with_border

#: three numbers, (z, y, x)
Triple = Sequence[int] | np.ndarray
#: windows count if the body fills at least this share of what it fills of the fullest one
_MIN_BODY = 0.25
#: windows that go through the network at once
_AT_ONCE = 4


def crop_at(image: Any, start: Triple, size: Triple) -> np.ndarray:
    """Return the crop of an image (C, z, y, x) that begins at a voxel; outermost voxels are repeated."""
    return crop_with_border(image, np.asarray(start) + np.asarray(size) // 2, tuple(size))


def window_starts(geometry: CaseGeometry, patch_size: Triple, step: float) -> np.ndarray:
    """Return the first voxels of the windows that cover the body of a case: (N, 3) int, N at least 1.

    Where the volume is smaller than the patch, the one window lies in its middle and reaches beyond it.

    Args:
        geometry: of the case.
        patch_size: (3,) voxels, (z, y, x).
        step: distance of windows in patches, at most.
    """
    patch = np.asarray(patch_size)
    body = geometry.body
    cells = np.argwhere(body)
    factors = np.asarray(geometry.factors)
    low, high = cells.min(axis=0) * factors, np.minimum((cells.max(axis=0) + 1) * factors, geometry.shape)
    axes = []
    for first, last, size, width in zip(low, high, geometry.shape, patch, strict=True):
        if size <= width:
            axes.append([(size - width) // 2])
            continue
        middle = (first + last - width) // 2  # of a body that one window covers
        end = last - width
        if end <= first:
            axes.append([int(np.clip(middle, 0, size - width))])
            continue
        count = int(np.ceil((end - first) / (step * width))) + 1
        axes.append(np.round(np.linspace(first, end, count)).astype(int).tolist())
    starts = np.array(list(product(*axes)))
    filled = np.array([_cells_in(body, start, start + patch, factors) for start in starts])
    return starts[filled >= _MIN_BODY * filled.max()]


@dataclass
class CaseFeatures:
    """Features of the windows of a case.

    Attributes:
        starts: (N, 3) first voxel of every window.
        features: (N, F) of every window.
    """

    starts: np.ndarray
    features: Tensor

    @property
    def mean(self) -> Tensor:
        """(1, F) features of the case."""
        return self.features.mean(dim=0, keepdim=True)


class CasePredictor:
    """A network that is asked about whole cases.

    The case's features are the mean over its windows (and over their mirror images); the head speaks once, of that
    mean. Call it without gradient and in evaluation mode.

    Args:
        network: encoder and head.
        patch_size: (3,) voxels of a window, (z, y, x).
        step: distance of windows in patches.
        mirror_axes: spatial axes (0 to 2) along which windows are mirrored, too.
    """

    def __init__(
        self, network: PooledEncoder, patch_size: Sequence[int], step: float, mirror_axes: Sequence[int] = ()
    ) -> None:
        self.network = network
        self.patch_size = np.asarray(patch_size)
        self.step = step
        axes = [axis + 2 for axis in mirror_axes]
        self.flips = [
            [a for a, on in zip(axes, chosen, strict=True) if on] for chosen in product((0, 1), repeat=len(axes))
        ]

    def case_features(self, image: Any, geometry: CaseGeometry) -> CaseFeatures:
        """Return features of all windows of a case.

        Args:
            image: (C, z, y, x), read window by window.
            geometry: of the case.
        """
        starts = window_starts(geometry, self.patch_size, self.step)
        return CaseFeatures(starts, self.window_features(crop_at(image, s, self.patch_size) for s in starts))

    def window_features(self, crops: Iterator[np.ndarray]) -> Tensor:
        """Return features (N, F) of windows (C, *patch), a few in memory at a time."""
        found, waiting = [], []
        for crop in crops:
            waiting.append(torch.from_numpy(crop))
            if len(waiting) == _AT_ONCE:
                found.append(self._features(torch.stack(waiting)))
                waiting = []
        if waiting:
            found.append(self._features(torch.stack(waiting)))
        return torch.cat(found)

    def outputs(self, features: Tensor) -> np.ndarray:
        """Return what the head says of features (N, F): (N, outputs)."""
        return self.network.head(features).float().cpu().numpy()

    def _features(self, crops: Tensor) -> Tensor:
        """Return mean over the mirror images of features of crops (N, C, *patch)."""
        device = next(self.network.parameters()).device
        crops = crops.to(device)
        with torch.autocast("cuda", enabled=device.type == "cuda"):
            return torch.stack([self.network.features(crops.flip(flip)) for flip in self.flips]).mean(dim=0)


def _cells_in(body: np.ndarray, start: np.ndarray, end: np.ndarray, factors: np.ndarray) -> int:
    """Return cells of the body between two voxels."""
    first, last = np.maximum(start, 0) // factors, -(-end // factors)
    return int(body[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].sum())
