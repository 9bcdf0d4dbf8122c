"""What trainers do together over the ranks of a DDP run; all of it is plain work in a single process."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from nnunet_alice.methods.distributed import gather_rows, mean_over_ranks, world_size

Result = TypeVar("Result")


def on_one_rank_first(work: Callable[[], Result]) -> Result:
    """Let rank 0 do work that writes files, then the others, who find it done.

    They wait in a group of their own: NCCL gives up after minutes, and registering a large dataset takes hours.

    Args:
        work: called once on every rank.

    Returns:
        What ``work`` gave on this rank.
    """
    if world_size() == 1:
        return work()
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    first = dist.get_rank() == 0
    result = work() if first else None
    dist.barrier(group=patient)
    return result if first else work()


def number_of_each_rank(number: int, device: torch.device) -> tuple[int, ...]:
    """A number of every rank, in the order of the ranks.

    Args:
        number: this rank's.
        device: where the ranks' backend can gather.
    """
    return tuple(gather_rows(torch.tensor([number], device=device)).tolist())


def of_all_ranks(items: Iterable[Result]) -> list[Result]:
    """Items of every rank, in the order of the ranks.

    Args:
        items: of this rank; anything that can be pickled.
    """
    if world_size() == 1:
        return list(items)
    gathered: list[list[Result]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, list(items))
    return [item for own in gathered for item in own]


def names_of_all_ranks(names: Iterable[str]) -> list[str]:
    """Names that any rank gives, sorted."""
    return sorted(set(of_all_ranks(names)))


def metrics_over_ranks(metrics: dict[str, float], device: torch.device) -> dict[str, float]:
    """Mean over the ranks of metrics; NaN, for "nothing to measure here", does not count unless all ranks say so.

    Args:
        metrics: name -> number, the same names in the same order on every rank.
        device: where the ranks' backend can reduce.
    """
    if world_size() == 1 or not metrics:
        return metrics
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    measured = ~values.isnan()
    sums, counts = mean_over_ranks(torch.stack([values.where(measured, 0.0), measured.double()]))
    return dict(zip(metrics, (sums / counts).tolist(), strict=True))
