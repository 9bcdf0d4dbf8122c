"""Crops by one interpolation: a random affine map, then random intensities. Everything random comes from ``rng``."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def random_map(rng: np.random.Generator, probability: float) -> np.ndarray:
    """Return a (3, 3) map from voxels of the crop to voxels of the case: rotation up to 0.3 rad, scale 0.8 to 1.25."""
    if rng.random() > probability:
        return np.eye(3)
    matrix = np.diag(np.exp(rng.uniform(np.log(0.8), np.log(1.25), 3)))
    for axis, angle in enumerate(rng.uniform(-0.3, 0.3, 3)):
        turn, (first, second) = np.eye(3), [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def points_of(centre_vox: np.ndarray, matrix: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return where the voxels of a crop lie in the case: (*size, 3) voxels, (z, y, x)."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return grid @ torch.from_numpy(matrix).float().T + torch.from_numpy(np.asarray(centre_vox)).float()


def sample(volume: Tensor, points: Tensor, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """Return (C, *size) values of a volume (1, C, z, y, x) at points (*size, 3)."""
    shape = torch.tensor(volume.shape[2:], dtype=torch.float32)
    grid = (2 * points / (shape - 1) - 1).flip(-1)[None]
    return F.grid_sample(volume, grid, mode=mode, padding_mode=padding, align_corners=True)[0]


def random_intensities(view: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a view with noise, gain, shift, gamma and blur, each now and then."""
    if rng.random() < 0.3:
        view = view + torch.from_numpy(rng.normal(0, rng.uniform(0, 0.3), tuple(view.shape))).float()
    if rng.random() < 0.4:
        view = view * rng.uniform(0.75, 1.25)
    if rng.random() < 0.4:
        view = view + rng.uniform(-0.3, 0.3)
    if rng.random() < 0.4:
        low, high = view.min(), view.max()
        view = ((view - low) / (high - low + 1e-6)).pow(np.exp(rng.uniform(-0.4, 0.4))) * (high - low) + low
    if rng.random() < 0.15:
        view = F.interpolate(F.avg_pool3d(view[None], 2), size=view.shape[1:], mode="trilinear")[0]
    return view
