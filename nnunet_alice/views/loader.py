"""Loaders of views: every batch is a function of (seed, rank, its number), whoever computes it and when.

That makes a run repeatable and resumable to the bit without saving any generator's state: continuing at batch n
delivers what the uninterrupted run would have had, with any number of worker processes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_alice.cropping import crop_centred
from nnunet_alice.views.augmentation import augment
from nnunet_alice.views.masking import block_mask, block_shape
from nnunet_alice.views.pairs import PointPair
from nnunet_alice.views.readings import Readings


class DrawsPairs(Protocol):
    """Anything that draws pairs of points, and remembers which cases could not be read."""

    readings: Readings

    def draw(self, rng: np.random.Generator) -> PointPair: ...


class NumberedBatches:
    """Iterator over batches 0, 1, 2, ... of ``make_batch``, to be split among workers of batchgenerators.

    Args:
        make_batch: (number, generator) -> batch.
        seed: seed of the run.
        rank: rank of this process; ranks see different batches.
        start: number of the first batch.
        period: numbers wrap around after so many batches (validation sees the same batches in every epoch).
    """

    def __init__(
        self,
        make_batch: Callable[[int, np.random.Generator], dict],
        *,
        seed: int,
        rank: int = 0,
        start: int = 0,
        period: int | None = None,
    ) -> None:
        self.make_batch = make_batch
        self.seed = seed
        self.rank = rank
        self.period = period
        self.number = start
        self.stride = 1

    def set_thread_id(self, thread_id: int) -> None:
        """Called by batchgenerators in each worker: worker i of n takes batches i, i + n, i + 2n, ...

        Workers are forked and get one thread: a fork of a process that has computed with several (nnU-Net on the
        CPU does) inherits OpenMP's team without its threads, and would wait for them for ever.
        """
        torch.set_num_threads(1)
        self.number += thread_id

    def __iter__(self) -> "NumberedBatches":
        return self

    def __next__(self) -> dict:
        number = self.number if self.period is None else self.number % self.period
        self.number += self.stride
        return self.make_batch(number, np.random.default_rng([self.seed, self.rank, number]))


def start_loader(batches: NumberedBatches, num_processes: int, pin_memory: bool):
    """Deliver the batches in order, from ``num_processes`` worker processes or, at 0, from this one."""
    if num_processes == 0:
        return SingleThreadedAugmenter(batches, None)
    batches.stride = num_processes
    return MultiThreadedAugmenter(
        batches, None, num_processes, num_cached_per_queue=2, pin_memory=pin_memory, wait_time=0.002
    )


class MatchedViews:
    """Makes batches of matched views for Alice; callable as ``make_batch`` of :class:`NumberedBatches`.

    A batch holds ``data`` (2B, C, *patch) float32, first B query views, then their B anchor views; ``mask``
    (2B, *patch) bool, True where the student is blind; and ``pairs``, the B point pairs. Cases that cannot be read are
    left out: another pair is drawn in the place of theirs.

    Args:
        pairs: draws the point pairs.
        open_image: case -> (C, z, y, x) array, read lazily.
        patch_size: (3,) voxels.
        batch_size: B, number of pairs.
        mask_ratio: share of blocks that are masked.
        transform: augmentation of each view, None for none.
    """

    def __init__(
        self,
        pairs: DrawsPairs,
        open_image: Callable[[str], np.ndarray],
        patch_size: Sequence[int],
        batch_size: int,
        *,
        mask_ratio: float,
        transform: BasicTransform | None,
    ) -> None:
        self.pairs = pairs
        self.open_image = open_image
        self.patch_size = tuple(patch_size)
        self.batch_size = batch_size
        self.block = block_shape(self.patch_size)
        self.mask_ratio = mask_ratio
        self.transform = transform

    def __call__(self, number: int, rng: np.random.Generator) -> dict:
        drawn = [self.pairs.readings.again(self._draw, rng) for _ in range(self.batch_size)]
        pairs, queries, anchors = zip(*drawn, strict=True)
        views = [
            torch.from_numpy(view) if self.transform is None else augment(view, self.transform, rng)
            for view in (*queries, *anchors)
        ]
        masks = [block_mask(self.patch_size, self.block, self.mask_ratio, rng) for _ in views]
        return {"data": torch.stack(views), "mask": torch.from_numpy(np.stack(masks)), "pairs": list(pairs)}

    def _draw(self, rng: np.random.Generator) -> tuple[PointPair, np.ndarray, np.ndarray]:
        """A pair, its query view and its anchor view."""
        pair = self.pairs.draw(rng)
        return pair, self._crop(pair.case_a, pair.point_a), self._crop(pair.case_b, pair.point_b)

    def _crop(self, case: str, point: np.ndarray) -> np.ndarray:
        with self.pairs.readings.of(case):
            return crop_centred(self.open_image(case), point, self.patch_size)
