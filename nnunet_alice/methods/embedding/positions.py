"""Where the voxels of crops and of their feature maps lie in millimetres, and what a map says at such a place.

Positions are millimetres of the volume, (z, y, x), voxel (0, 0, 0) at the origin. A feature at index i of a map with
stride s stands for the block of s input voxels that begins at voxel i * s. So its place is the middle of that block,
``(i + 0.5) * s - 0.5`` voxels: the convention of ``align_corners=False``, by which the paper's reference code brings
maps and positions to one size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_affine(crop_affine: Tensor, stride: Sequence[int]) -> Tensor:
    """Return the affine from indices of a feature map to millimetres: (V, 4, 4), index of the map -> mm.

    Args:
        crop_affine: (V, 4, 4), voxel of the crop -> mm in its volume, of V crops.
        stride: (3,) stride of the map relative to the crop.
    """
    index_to_voxel = torch.eye(4, dtype=crop_affine.dtype, device=crop_affine.device)
    for axis, s in enumerate(stride):
        index_to_voxel[axis, axis] = s
        index_to_voxel[axis, 3] = (s - 1) / 2
    return crop_affine @ index_to_voxel


def map_positions_mm(affine: Tensor, shape: Sequence[int]) -> Tensor:
    """Return positions of all voxels of a map: (V, N, 3) mm, in the order of ``map.flatten(2)``.

    Args:
        affine: (V, 4, 4), index -> mm.
        shape: (3,) size of the map.
    """
    axes = [torch.arange(n, dtype=affine.dtype, device=affine.device) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return apply_affine(affine, index.expand(len(affine), -1, -1))


def apply_affine(affine: Tensor, points: Tensor) -> Tensor:
    """Transform (V, Q, 3) points by (V, 4, 4) affines."""
    return points @ affine[:, :3, :3].transpose(1, 2) + affine[:, None, :3, 3]


def inverse_affine(affine: Tensor) -> Tensor:
    """Return the inverse of (V, 4, 4) affines, float64, without waiting for the device as torch does.

    A singular matrix gives numbers that are not finite.
    """
    return torch.linalg.inv_ex(affine.double()).inverse


def sample_map(descriptors: Tensor, affine: Tensor, points_mm: Tensor) -> Tensor:
    """Return descriptors at points between the voxels: trilinear, made unit vectors again.

    Beyond the outermost voxel centres of the map its border value holds (within half a stride of the crop's edge).

    Args:
        descriptors: (V, D, z, y, x), unit length along axis 1.
        affine: (V, 4, 4), index of the map -> mm.
        points_mm: (V, Q, 3).

    Returns:
        (V, Q, D), unit length.
    """
    index = apply_affine(inverse_affine(affine), points_mm.double()).to(descriptors.dtype)
    # grid_sample wants (x, y, z) in [-1, 1] from edge to edge of the map.
    axes = [(2 * index[..., axis] + 1) / size - 1 for axis, size in enumerate(descriptors.shape[2:])]
    normalised = torch.stack(axes[::-1], dim=-1)[:, :, None, None]
    sampled = F.grid_sample(descriptors, normalised, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(sampled[..., 0, 0].transpose(1, 2), dim=2)
