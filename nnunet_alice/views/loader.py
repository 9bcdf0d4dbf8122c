"""Loaders of views: every batch is a function of (seed, rank, its number), whoever computes it and when.

That makes a run repeatable and resumable to the bit without saving any generator's state: continuing at batch n
delivers what the uninterrupted run would have had, with any number of worker processes.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunet_alice.views.batch import Batch

_KIND = "kind of batch"


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
        make_batch: Callable[[int, np.random.Generator], Batch],
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
        """Take every n-th batch; batchgenerators calls it in each worker.

        Workers are forked and get one thread: a fork of a process that has computed with several (nnU-Net on the
        CPU does) inherits OpenMP's team without its threads. It would wait for them for ever.
        """
        torch.set_num_threads(1)
        self.number += thread_id

    def __iter__(self) -> "NumberedBatches":
        return self

    def __next__(self) -> Batch:
        number = self.number if self.period is None else self.number % self.period
        self.number += self.stride
        return self.make_batch(number, np.random.default_rng([self.seed, self.rank, number]))


class _Fields:
    """Hands batches over as dicts: batchgenerators pins the memory of dicts only."""

    def __init__(self, batches: NumberedBatches) -> None:
        self.batches = batches

    def set_thread_id(self, thread_id: int) -> None:
        self.batches.set_thread_id(thread_id)

    def __next__(self) -> dict:
        batch = next(self.batches)
        return {_KIND: type(batch), **vars(batch)}


class _Workers(MultiThreadedAugmenter):
    """Ordered worker processes that deliver batches."""

    def start(self) -> None:
        """Fork the workers now, instead of at the first batch."""
        self._start()

    def __next__(self) -> Batch:
        fields = super().__next__()
        return fields.pop(_KIND)(**fields)


Loader: TypeAlias = SingleThreadedAugmenter | MultiThreadedAugmenter


def start_loader(batches: NumberedBatches, num_processes: int, pin_memory: bool) -> Loader:
    """Deliver the batches in order, from ``num_processes`` worker processes or, at 0, from this one.

    The workers are forked at once.
    """
    if num_processes == 0:
        return SingleThreadedAugmenter(batches, None)
    batches.stride = num_processes
    workers = _Workers(
        _Fields(batches), None, num_processes, num_cached_per_queue=2, pin_memory=pin_memory, wait_time=0.002
    )
    workers.start()
    return workers
