"""Pairs of overlapping crops of one volume, each of its own size and place, whose voxels know where they lie in mm.

For the anatomical embedding (Yan et al., TMI 2022, sec. III-B). A crop keeps its voxels' positions as one affine
matrix instead of the reference's dense map of three more channels: all that happens to it is a scale and a shift.
Parameters are drawn first (:meth:`OverlapSampler.draw`) and applied then (:func:`cut`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_alice.affine import Affine
from nnunet_alice.cropping import crop_centred
from nnunet_alice.dataset import LazyImage
from nnunet_alice.triples import triple

#: a voxel that lies less than this outside the volume is inside
_ROUNDING_VOX = 1e-6
#: share of a crop at each side where the shared point is not put
_MARGIN = 0.25


@dataclass(frozen=True)
class CropPlace:
    """Where a crop lies in its volume: voxel i of the crop is at ``start_vox + i * step_vox`` of the volume.

    Attributes:
        start_vox: (3,) voxels of the volume, (z, y, x); any real number.
        step_vox: (3,) voxels of the volume a crop voxel; above 1 the crop shows more, smaller.
        size: (3,) voxels of the crop.
    """

    start_vox: tuple[float, float, float]
    step_vox: tuple[float, float, float]
    size: tuple[int, int, int]


@dataclass(frozen=True)
class Crop:
    """A resampled crop that knows where it comes from.

    Attributes:
        image: (C, *size) float32, zero outside the volume.
        affine: (4, 4) float64, (z, y, x, 1) voxels of the crop -> mm in the volume, whose voxel (0, 0, 0) is at 0.
        extent_mm: (3,) position of the volume's last voxel.
    """

    image: np.ndarray
    affine: np.ndarray
    extent_mm: np.ndarray


class OverlapSampler:
    """Draws two crops around a shared point, each with its own position and scale.

    The shared point lies at a random place of the inner part of both crops. So every pair overlaps by at least
    half of the smaller crop on each axis (before shifting into the volume, which only adds to it).

    A crop that fits is shifted into the volume. On an axis where the volume is smaller than the crop the rest is
    zeros, as in nnU-Net; but where nnU-Net centres the volume, ours puts it at a random place, the whole of it
    shown: were it always centred, the network could tell the position in the volume from that in the crop.

    Args:
        size: (3,) crop size in voxels.
        scale: smallest and largest factor between crop voxel and volume voxel, the same for all axes of a crop.

    Raises:
        ValueError: the scale range is impossible.
    """

    def __init__(self, size: Sequence[int], *, scale: tuple[float, float] = (0.8, 1.2)) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two positive numbers, the smaller first, got {scale}.")
        self.size = tuple(int(n) for n in size)
        self.scale = scale

    def draw(
        self, shape: Sequence[int], point_vox: Sequence[float], rng: np.random.Generator
    ) -> tuple[CropPlace, CropPlace]:
        """Draw the places of both crops.

        Args:
            shape: (3,) shape of the volume.
            point_vox: (3,) point that both crops show, in voxels of the volume (a body point).
            rng: source of randomness.
        """
        return self._place(shape, point_vox, rng), self._place(shape, point_vox, rng)

    def _place(self, shape: Sequence[int], point_vox: Sequence[float], rng: np.random.Generator) -> CropPlace:
        step = float(rng.uniform(*self.scale))
        reach = (np.asarray(self.size) - 1) * step
        start = np.asarray(point_vox, dtype=float) - rng.uniform(_MARGIN, 1 - _MARGIN, size=3) * reach
        slack = np.asarray(shape) - 1 - reach
        start = np.where(slack >= 0, np.clip(start, 0, np.maximum(slack, 0)), np.clip(start, np.minimum(slack, 0), 0))
        return CropPlace(triple(start.tolist()), (step,) * 3, triple(self.size))


def cut(image: LazyImage, place: CropPlace, spacing_mm: Sequence[float]) -> Crop:
    """Resample a crop (linear interpolation), reading no more of the volume than it shows.

    Args:
        image: (C, z, y, x), numpy array or blosc2 array.
        place: where the crop lies.
        spacing_mm: (3,) voxel size of the volume in mm, (z, y, x).
    """
    shape = np.asarray(image.shape[1:])
    start, step, size = np.asarray(place.start_vox), np.asarray(place.step_vox), np.asarray(place.size)
    spacing = np.asarray(spacing_mm, dtype=float)
    affine = Affine.scaling(step * spacing, start * spacing).matrix
    if np.array_equal(step, np.ones(3)) and np.array_equal(start, np.round(start)):
        view = crop_centred(image, start + size // 2, place.size)
    else:
        lower = np.clip(np.floor(start), 0, shape - 1).astype(int)
        upper = np.clip(np.ceil(start + step * (size - 1)) + 1, lower + 1, shape).astype(int)
        part = np.asarray(image[(slice(None), *map(slice, lower.tolist(), upper.tolist()))], dtype=np.float32)
        view = np.empty((part.shape[0], *place.size), dtype=np.float32)
        for channel, target in zip(part, view, strict=True):
            ndimage.affine_transform(channel, step, start - lower, place.size, target, order=1, mode="nearest")
        # Padding is cut here and not by scipy, which drops voxels that rounding puts 1e-15 outside the volume.
        for axis in range(3):
            at = start[axis] + step[axis] * np.arange(size[axis])
            outside = (at < -_ROUNDING_VOX) | (at > shape[axis] - 1 + _ROUNDING_VOX)
            np.moveaxis(view, axis + 1, 0)[outside] = 0
    return Crop(view, affine, (shape - 1) * spacing)


def overlapping_crops(
    image: LazyImage,
    point_vox: Sequence[float],
    spacing_mm: Sequence[float],
    sampler: OverlapSampler,
    rng: np.random.Generator,
) -> tuple[Crop, Crop]:
    """Draw and cut a pair of crops that both show ``point_vox``; see :class:`OverlapSampler` and :func:`cut`."""
    first, second = sampler.draw(image.shape[1:], point_vox, rng)
    return cut(image, first, spacing_mm), cut(image, second, spacing_mm)
