"""Batches of pairs of overlapping crops for the anatomical embedding: images, where they lie, what of them is body."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.dataset import LazyImage
from nnunet_alice.errors import InputError
from nnunet_alice.views.augmentation import augmented
from nnunet_alice.views.batch import Batch
from nnunet_alice.views.overlap import Crop, OverlapSampler, overlapping_crops
from nnunet_alice.views.readings import Readings, UnreadableCaseError
from nnunet_alice.words import counted

#: case, its geometry and a pair of crops
_Drawn = tuple[str, CaseGeometry, tuple[Crop, Crop]]


@dataclass(frozen=True)
class OverlapBatch(Batch):
    """Two overlapping crops of each of B ``cases``: ``views`` (2B, C, *patch), crop i and crop i + B of one volume.

    Attributes:
        affine: (2B, 4, 4) float32, voxel of the crop -> mm in the volume.
        fine_valid: bool (2B, N), which voxels of the fine map lie in the body.
        coarse_valid: bool (2B, N'), those of the coarse map.
        seed: from which queries and negatives are drawn.
    """

    affine: Tensor
    fine_valid: Tensor
    coarse_valid: Tensor
    seed: int


class OverlappingCrops:
    """Makes batches; callable as ``make_batch`` of :class:`nnunet_alice.views.loader.NumberedBatches`.

    A batch shows B different cases where there are as many. A case that cannot be read is replaced by a different one.

    Args:
        cases: cases to draw from.
        geometry_of: case -> its geometry.
        open_image: case -> (C, z, y, x) array, read lazily.
        spacing_mm: (3,) voxel size, (z, y, x).
        sampler: draws the crops.
        batch_size: B.
        fine_stride: (3,) stride of the fine map relative to the crop.
        coarse_stride: (3,) stride of the coarse map.
        transform: augmentation of each crop, None for none.

    Raises:
        InputError: there is no case.
    """

    def __init__(
        self,
        cases: Sequence[str],
        geometry_of: Callable[[str], CaseGeometry],
        open_image: Callable[[str], LazyImage],
        spacing_mm: Sequence[float],
        sampler: OverlapSampler,
        batch_size: int,
        *,
        fine_stride: Sequence[int],
        coarse_stride: Sequence[int],
        transform: BasicTransform | None,
    ) -> None:
        if not cases:
            raise InputError("There is no case to crop from; look at the messages above about cases left out.")
        self.cases = sorted(cases)
        self.geometry_of = geometry_of
        self.open_image = open_image
        self.spacing_mm = tuple(spacing_mm)
        self.sampler = sampler
        self.batch_size = batch_size
        self.fine_stride, self.coarse_stride = tuple(fine_stride), tuple(coarse_stride)
        self.transform = transform
        self.readings = Readings()

    def __call__(self, number: int, rng: np.random.Generator) -> OverlapBatch:
        """Return the batch of this number; everything random comes from ``rng``."""
        count = len(self.cases)
        # Different volumes: the coarse loss takes its global negatives from them.
        chosen = rng.choice(count, self.batch_size, replace=count < self.batch_size).tolist()
        drawn = self._read([self.cases[index] for index in chosen], rng)
        cases, geometries, pairs = map(list, zip(*drawn, strict=True))
        crops = [pair[side] for side in (0, 1) for pair in pairs]
        valid = {
            stride: np.stack([body_voxels(c, g, stride) for c, g in zip(crops, 2 * geometries, strict=True)])
            for stride in (self.fine_stride, self.coarse_stride)
        }
        return OverlapBatch(
            views=augmented((crop.image for crop in crops), self.transform, rng),
            cases=cases,
            affine=torch.from_numpy(np.stack([crop.affine for crop in crops])).float(),
            fine_valid=torch.from_numpy(valid[self.fine_stride]),
            coarse_valid=torch.from_numpy(valid[self.coarse_stride]),
            seed=int(rng.integers(2**62)),
        )

    def _read(self, chosen: list[str], rng: np.random.Generator) -> list[_Drawn]:
        """Return a pair of crops of each chosen case, or of one in its place, if possible not in the batch.

        Raises:
            InputError: no case can be read.
        """
        drawn = []
        for case in chosen:
            try:
                drawn.append(self._crops(case, rng))
            except UnreadableCaseError:
                shuffled = [self.cases[index] for index in rng.permutation(len(self.cases))]
                used = {*chosen, *(name for name, _, _ in drawn)}
                drawn.append(self._first_readable(sorted(shuffled, key=used.__contains__), rng))
        return drawn

    def _first_readable(self, cases: list[str], rng: np.random.Generator) -> _Drawn:
        for case in cases:
            with suppress(UnreadableCaseError):
                return self._crops(case, rng)
        raise InputError(
            f"None of the {counted(len(cases), 'case')} can be read; the first: {self.readings.first}"
        ).about(value=len(cases))

    def _crops(self, case: str, rng: np.random.Generator) -> _Drawn:
        """Return a pair of crops around a point in the body.

        Raises:
            UnreadableCaseError: the case cannot be read; ``rng`` stands where it stood, however far this came.
        """
        state = rng.bit_generator.state
        try:
            with self.readings.of(case):
                geometry, image = self.geometry_of(case), self.open_image(case)
                point = geometry.body_points(1, rng)[0]
                return case, geometry, overlapping_crops(image, point, self.spacing_mm, self.sampler, rng)
        except UnreadableCaseError:
            rng.bit_generator.state = state
            raise


def body_voxels(crop: Crop, geometry: CaseGeometry, stride: Sequence[int]) -> np.ndarray:
    """Return which voxels of a feature map have their centre in the volume and in the body.

    Args:
        crop: the crop that the map belongs to.
        geometry: of the case.
        stride: (3,) of the map relative to the crop.

    Returns:
        bool (N,), in the order of ``map.flatten()``.
    """
    inside, cells = [], []
    for axis, (size, step) in enumerate(zip(crop.image.shape[1:], stride, strict=True)):
        # Crops are scaled and shifted, never turned: every axis on its own.
        index = np.arange(size // step) * step + (step - 1) / 2
        at_mm = crop.affine[axis, axis] * index + crop.affine[axis, 3]
        inside.append((at_mm >= -1e-6) & (at_mm <= crop.extent_mm[axis] + 1e-6))
        cell = np.floor((at_mm / geometry.spacing[axis] + 0.5) / geometry.factors[axis]).astype(int)
        cells.append(np.clip(cell, 0, geometry.grid_shape[axis] - 1))
    body = geometry.body[np.ix_(*cells)]
    return (body & inside[0][:, None, None] & inside[1][:, None] & inside[2]).ravel()
