"""Batches of matched views for Alice: two crops of the same anatomy, and what of them is masked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from nnunet_alice.cropping import crop_bounds, crop_centred
from nnunet_alice.dataset import LazyImage
from nnunet_alice.methods.alice.regions import GRID_STEP, grid_size
from nnunet_alice.views.augmentation import augmented
from nnunet_alice.views.batch import Batch
from nnunet_alice.views.masking import block_mask, block_shape
from nnunet_alice.views.pairs import PointPair
from nnunet_alice.views.readings import Readings

#: (case, (3,) first voxel, size) -> bool crop, True in the body
CropsBodies: TypeAlias = Callable[[str, np.ndarray, Sequence[int]], np.ndarray]
#: image (C, *patch) and body (*patch) of a view; no body where nobody asks
_View: TypeAlias = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class AliceBatch(Batch):
    """B pairs of matched views: ``views`` (2B, C, *patch) are B query views, then their B anchor views.

    Attributes:
        mask: (2B, *patch) bool, True where the student is blind.
        pairs: the B point pairs.
        regions: (2B, z, y, x) int64, the region of the atlas at every third voxel, 0 where it is not known; None where
            regions are not asked for.
        regions_first: (3,) int64, the first of these voxels on every axis.
        body: (2B, *patch) bool, True in the body; None where nobody asks.
    """

    mask: Tensor
    pairs: list[PointPair]
    regions: Tensor | None = None
    regions_first: Tensor | None = None
    body: Tensor | None = None


class DrawsPairs(Protocol):
    """Anything that draws pairs of points, and remembers which cases could not be read."""

    readings: Readings

    def draw(self, rng: np.random.Generator) -> PointPair:
        """Draw a pair of points."""
        ...


class LabelsRegions(Protocol):
    """Anything that knows the regions of the atlas in cases, as ``matching.modalities.RegionLabels`` does."""

    def open(self, case: str) -> None:
        """Read what labels of a case need; whatever is wrong with its files is raised here."""
        ...

    def on_grid(
        self, case: str, first_vox: Sequence[float] | np.ndarray, step_vox: Sequence[float], size: Sequence[int]
    ) -> np.ndarray:
        """Return the region of every point of a grid in a case, 0 where it is not known."""
        ...


class MatchedViews:
    """Makes batches of matched views; callable as ``make_batch`` of :class:`nnunet_alice.views.loader.NumberedBatches`.

    Cases that cannot be read are left out: a different pair is drawn in the place of theirs.

    Args:
        pairs: draws the point pairs.
        open_image: case -> (C, z, y, x) array, read lazily.
        patch_size: (3,) voxels.
        batch_size: B, number of pairs.
        mask_ratio: share of the query views' blocks that are masked.
        anchor_mask_ratio: the same of the anchor views; None for ``mask_ratio``.
        transform: augmentation of each view, None for none.
        regions: labels views with the regions of the atlas, None for no labels.
        body_crop: (case, first voxel, size) -> bool crop, True in the body; None for no :attr:`AliceBatch.body`.
    """

    def __init__(
        self,
        pairs: DrawsPairs,
        open_image: Callable[[str], LazyImage],
        patch_size: Sequence[int],
        batch_size: int,
        *,
        mask_ratio: float,
        anchor_mask_ratio: float | None = None,
        transform: BasicTransform | None,
        regions: LabelsRegions | None = None,
        body_crop: CropsBodies | None = None,
    ) -> None:
        self.pairs = pairs
        self.open_image = open_image
        self.patch_size = tuple(patch_size)
        self.batch_size = batch_size
        self.block = block_shape(self.patch_size)
        self.mask_ratios = (mask_ratio, mask_ratio if anchor_mask_ratio is None else anchor_mask_ratio)
        self.transform = transform
        self.regions = regions
        self.body_crop = body_crop

    def __call__(self, number: int, rng: np.random.Generator) -> AliceBatch:
        """Return the batch of this number; everything random comes from ``rng``."""
        drawn = [self.pairs.readings.again(self._draw, rng) for _ in range(self.batch_size)]
        pairs, queries, anchors = zip(*drawn, strict=True)
        views = augmented((image for image, _ in (*queries, *anchors)), self.transform, rng)
        masks = [
            block_mask(self.patch_size, self.block, ratio, rng) for ratio in self.mask_ratios for _ in range(len(pairs))
        ]
        cases = sorted({case for pair in pairs for case in (pair.case_a, pair.case_b)})
        batch = AliceBatch(views, cases, torch.from_numpy(np.stack(masks)), list(pairs))
        if self.body_crop is not None:
            batch = replace(batch, body=torch.from_numpy(np.stack([body for _, body in (*queries, *anchors)])))
        return batch if self.regions is None else self._with_regions(batch, self.regions, rng)

    def _with_regions(self, batch: AliceBatch, regions: LabelsRegions, rng: np.random.Generator) -> AliceBatch:
        """Add the regions at every third voxel; where they begin is drawn, so that in time every voxel is asked."""
        first = np.minimum(rng.integers(GRID_STEP, size=3), np.array(self.patch_size) - 1)  # views may be thinner
        labels = []
        for case, point in _centres(batch):
            start = crop_bounds(point, self.patch_size) + first
            with self.pairs.readings.of(case):
                labels.append(regions.on_grid(case, start, (GRID_STEP,) * 3, grid_size(self.patch_size)))
        return replace(batch, regions=torch.from_numpy(np.stack(labels)), regions_first=torch.from_numpy(first))

    def _draw(self, rng: np.random.Generator) -> tuple[PointPair, _View, _View]:
        """Return a pair, its query view and its anchor view; all files that the batch needs of it are read here."""
        pair = self.pairs.draw(rng)
        return pair, self._view(pair.case_a, pair.point_a), self._view(pair.case_b, pair.point_b)

    def _view(self, case: str, point: np.ndarray) -> _View:
        with self.pairs.readings.of(case):
            image = crop_centred(self.open_image(case), point, self.patch_size)
            body = None
            if self.body_crop is not None:
                body = self.body_crop(case, crop_bounds(point, self.patch_size), self.patch_size)
            if self.regions is not None:
                self.regions.open(case)
        return image, body


def _centres(batch: AliceBatch) -> list[tuple[str, np.ndarray]]:
    """Return case and centre of every view, in the order of the views."""
    return [(p.case_a, p.point_a) for p in batch.pairs] + [(p.case_b, p.point_b) for p in batch.pairs]
