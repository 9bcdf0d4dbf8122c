"""The only place of `methods` that talks to other processes; everything here is a no-op in a single process."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together; 1 without an initialised process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def rank() -> int:
    """Return the number of this process among those that train together, on all machines; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of ``x`` over all ranks, with gradient; ``x`` itself in a single process.

    Every rank has to call it the same number of times, in the same order. The gradient is the one of the *sum* of all
    ranks' losses. So the parameter gradients, which DDP averages over the ranks, are those of the mean loss.

    Args:
        x: Tensor of the same shape and dtype on every rank.

    Returns:
        Tensor of the same shape, equal on all ranks.
    """
    ranks = world_size()
    return x if ranks == 1 else _SumOverRanks.apply(x) / ranks


def max_over_ranks(x: Tensor) -> Tensor:
    """Return the elementwise maximum over all ranks, without gradient; in one process ``x``, detached.

    Args:
        x: Tensor of the same shape and dtype on every rank.

    Returns:
        Tensor of the same shape, equal on all ranks.
    """
    return x.detach() if world_size() == 1 else _reduced(x.detach(), dist.ReduceOp.MAX)


def _reduced(x: Tensor, operation: Any) -> Tensor:
    """Return the all-reduce of a copy of ``x``."""
    result = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=operation)
    return result


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose backward is an all-reduce: every rank's output depends on every rank's input.

    Own code, because torch deprecates its own version (``torch.distributed.nn.functional``).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _reduced(x, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return _reduced(grad_output, dist.ReduceOp.SUM)


@torch.compiler.disable  # sizes differ between ranks and steps: traced, each would be compiled again
def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in order, without gradient; in a single process ``x``, detached.

    Args:
        x: (n, ...); n may differ between ranks (nnU-Net's batch is not always divisible), the rest may not.

    Returns:
        (sum of n, ...), equal on all ranks.
    """
    x = x.detach()
    ranks = world_size()
    if ranks == 1:
        return x
    count = torch.tensor([x.shape[0]], device=x.device)
    counts = [torch.empty_like(count) for _ in range(ranks)]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    # all_gather wants equal shapes: short ranks are filled up, and cut again on arrival.
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: x.shape[0]] = x
    gathered = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])
