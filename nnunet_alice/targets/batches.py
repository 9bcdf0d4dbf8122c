"""Crops of cases with what is to be predicted of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from nnunet_alice.anatomy.geometry import CaseGeometry, load_geometry
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.targets.windows import crop_at
from nnunet_alice.views.augmentation import augmented
from nnunet_alice.views.batch import Batch
from nnunet_alice.views.readings import Readings, UnreadableCaseError

#: geometries that a worker keeps, half a megabyte each
_KEPT = 64


@dataclass(frozen=True)
class TargetBatch(Batch):
    """Crops of cases, with what is to be predicted of them.

    Attributes:
        target: (N, columns) float32.
    """

    target: Tensor


class TargetCrops:
    """Makes batches; callable as ``make_batch`` of ``views.loader.NumberedBatches``.

    In training a batch shows different cases, each by a crop of its body, drawn by chance. In validation batch n shows
    the n-th B cases, each by the crop in its middle.

    Args:
        dataset: the preprocessed dataset.
        truth: a row a case, indexed by case.
        patch_size: (3,) voxels, (z, y, x).
        batch_size: B.
        training: which of the two.
        crop_size: (3,) voxels that the transform is given; larger than the patch where it rotates.
        transform: augmentation that gives crops of the patch, None for none.
    """

    def __init__(
        self,
        dataset: PreprocessedDataset,
        truth: pd.DataFrame,
        patch_size: Sequence[int],
        batch_size: int,
        *,
        training: bool,
        crop_size: Sequence[int] | None = None,
        transform: BasicTransform | None = None,
    ) -> None:
        self.dataset = dataset
        self.cases = truth.index.tolist()
        self.truth = truth.to_numpy(np.float32)
        self.patch_size = np.asarray(patch_size)
        self.crop_size = np.asarray(patch_size if crop_size is None else crop_size)
        self.batch_size = batch_size
        self.training = training
        self.transform = transform
        self.readings = Readings()

    def __call__(self, number: int, rng: np.random.Generator) -> TargetBatch:
        """Return the batch of a number."""
        if self.training:
            size = self.batch_size
            first = rng.choice(len(self.cases), size, replace=size > len(self.cases)).tolist()
            drawn = [self._drawn(case, rng) for case in first]
        else:
            start = number * self.batch_size
            drawn = self._in_order(range(start, min(start + self.batch_size, len(self.cases))))
        chosen, crops = zip(*drawn, strict=True)
        views = augmented(crops, self.transform, rng)
        names = [self.cases[case] for case in chosen]
        return TargetBatch(views, names, torch.from_numpy(self.truth[list(chosen)]))

    def _drawn(self, case: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """Return a case and a crop of it; a different case by chance where that cannot be read."""
        wanted = [case]

        def draw(rng: np.random.Generator) -> tuple[int, np.ndarray]:
            number = wanted.pop() if wanted else int(rng.integers(len(self.cases)))
            return number, self._crop(number, rng)

        return self.readings.again(draw, rng)

    def _in_order(self, cases: Iterable[int]) -> list[tuple[int, np.ndarray]]:
        """Return cases and their middle crops, without those that cannot be read.

        Raises:
            UnreadableCaseError: none can.
        """
        drawn, reason = [], None
        for case in cases:
            try:
                drawn.append((case, self._crop(case, None)))
            except UnreadableCaseError as error:
                reason = error
        if not drawn and reason is not None:
            raise reason
        return drawn

    def _crop(self, case: int, rng: np.random.Generator | None) -> np.ndarray:
        """Return the crop of a case, drawn by chance or, without a generator, in its middle."""
        name = self.cases[case]
        with self.readings.of(name):
            image = self.dataset.image(name)
            room = np.asarray(image.shape[1:]) - self.patch_size
            start = room // 2
            if rng is not None and (room > 0).any():
                point = _geometry(self.dataset, name).body_points(1, rng)[0]
                start = np.where(room > 0, np.clip(np.round(point).astype(int) - self.patch_size // 2, 0, room), start)
            return crop_at(image, start - (self.crop_size - self.patch_size) // 2, self.crop_size)


@lru_cache(maxsize=_KEPT)
def _geometry(dataset: PreprocessedDataset, case: str) -> CaseGeometry:
    return load_geometry(dataset, case)
