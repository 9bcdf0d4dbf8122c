"""Affine augmentation of DrasCLR's crops: drawn in mm, applied to many crops at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

#: Edge of the reference's patches in voxels, which its translation is a share of.
_REFERENCE_PATCH_VOX = 32


@dataclass(frozen=True)
class AffineRange:
    """How far the affine augmentation goes ; every number is drawn uniformly.

    Attributes:
        translation: up to this share of the crop to each side, on every axis (12 of 32 voxels).
        rotation_degrees: up to this angle about every axis.
        scale: up to this share larger or smaller, each axis on its own.
    """

    translation: float = 12 / _REFERENCE_PATCH_VOX
    rotation_degrees: float = 10.0
    scale: float = 0.1


#: the reference's
REFERENCE_RANGE = AffineRange()


def draw_affine(
    limits: AffineRange, size: Sequence[int], spacing: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Draw an affine map from voxels of the augmented crop to voxels of the crop, both counted from the middle.

    Axes are scaled first, then turned, both in mm, so that anisotropic voxels are not sheared.

    Args:
        limits: how far it goes.
        size: (3,) crop size in voxels.
        spacing: (3,) voxel size in mm.
        rng: source of randomness.

    Returns:
        (3, 4), axes (z, y, x).
    """
    matrix = np.eye(3)
    for axis in range(3):
        angle = math.radians(rng.uniform(-limits.rotation_degrees, limits.rotation_degrees))
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    matrix = matrix * (1 + rng.uniform(-limits.scale, limits.scale, size=3))
    steps = np.asarray(spacing, dtype=float)
    shift = rng.uniform(-limits.translation, limits.translation, size=3) * np.asarray(size)
    return np.concatenate([matrix * steps / steps[:, None], shift[:, None]], axis=1)


def apply_affine_to_crops(crops: Tensor, affines: np.ndarray) -> Tensor:
    """Resample crops (linear), what lies outside being the nearest voxel of the border.

    torch samples images several times as fast as volumes. So a volume is read as one tall image of all its slices, in
    the slice below each place and in that above. Rows are large numbers then: places are exact to a 2,000th of a voxel
    in crops of 64 voxels.

    Args:
        crops: (N, C, z, y, x) float32.
        affines: (N, 3, 4) from `draw_affine`.

    Returns:
        (N, C, z, y, x).
    """
    depth, height, width = crops.shape[2:]
    rows = depth * height
    result = torch.empty_like(crops)
    grid = torch.empty(1, rows, width, 2)
    columns_and_rows = grid.view(depth, height, width, 2).unbind(-1)
    for crop, affine, out in zip(crops, affines, result, strict=True):
        z, y, x = _places(affine, crop.shape[1:])
        lower = z.clamp_(0, depth - 1).floor().clamp_(max=max(depth - 2, 0))
        # grid_sample counts from -1 to 1 over the array, borders included, x first.
        torch.add(x.mul_(2 / width), 1 / width - 1, out=columns_and_rows[0])
        torch.add(
            lower * (2 / depth) + (1 / rows - 1), y.clamp_(0, height - 1), alpha=2 / rows, out=columns_and_rows[1]
        )
        image = crop.reshape(1, -1, rows, width)
        below, above = (_sampled(image, grid, shift).view_as(out) for shift in (0, 2 / depth))
        torch.lerp(below, above, z.sub_(lower), out=out)
    return result


def _places(affine: np.ndarray, size: Sequence[int]) -> list[Tensor]:
    """Return where each voxel is read, z, y and x in voxels of the crop (each of its size), by sums over axes."""
    z, y, x = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size)
    return [
        ((by_z * z + (shift + (n - 1) / 2))[:, None] + by_y * y)[..., None] + by_x * x
        for n, (by_z, by_y, by_x, shift) in zip(size, affine.tolist(), strict=True)
    ]


def _sampled(image: Tensor, grid: Tensor, shift: float) -> Tensor:
    """Return values of an image at a grid whose rows are first moved by ``shift``, in place."""
    grid[..., 1] += shift
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
