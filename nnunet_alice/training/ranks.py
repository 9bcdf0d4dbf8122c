"""What trainers do together over the ranks of a DDP run; all of it is plain work in a single process."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar, cast

import torch
from torch import distributed as dist

from nnunet_alice.methods.distributed import gather_rows, mean_over_ranks, world_size

Result = TypeVar("Result")

#: Preparing a large dataset takes hours; NCCL's collectives give up after ten minutes.
PATIENCE = timedelta(days=7)


@lru_cache(maxsize=1)
def _patient_group(_of: object) -> dist.ProcessGroup:
    """Return a group of all ranks whose members wait as long as it takes, made once for each default group."""
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))


def wait_for_all_ranks() -> None:
    """Wait until every rank is here, however long that takes; to be called before a collective of NCCL."""
    if world_size() > 1:
        dist.barrier(group=_patient_group(dist.group.WORLD))


def on_one_rank_first(work: Callable[[], Result]) -> Result:
    """Let rank 0 do work that writes files, then the others, who find it done; go on when all are through.

    Args:
        work: called once on every rank.

    Returns:
        What ``work`` gave on this rank.
    """
    first = world_size() == 1 or dist.get_rank() == 0
    if first:
        result = work()
    wait_for_all_ranks()
    if not first:
        result = work()
    wait_for_all_ranks()
    return result


def on_one_rank(work: Callable[[], Result]) -> Result:
    """Let rank 0 alone do work whose result every rank needs.

    Args:
        work: called on rank 0 only.

    Returns:
        On every rank, what ``work`` gave on rank 0; it has to be picklable.
    """
    if world_size() == 1:
        return work()
    box = [work() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, group=_patient_group(dist.group.WORLD))
    return cast(Result, box[0])


def number_of_each_rank(number: int, device: torch.device) -> tuple[int, ...]:
    """Return a number of every rank, in the order of the ranks.

    Args:
        number: this rank's.
        device: where the ranks' backend can gather.
    """
    return tuple(gather_rows(torch.tensor([number], device=device)).tolist())


def of_all_ranks(items: Iterable[Result]) -> list[Result]:
    """Return items of every rank, in the order of the ranks.

    Args:
        items: of this rank; anything that can be pickled.
    """
    if world_size() == 1:
        return list(items)
    gathered: list[list[Result]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, list(items))
    return [item for own in gathered for item in own]


def metrics_over_ranks(metrics: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the mean of metrics over ranks; NaN ("nothing measured") counts only where all say so.

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
