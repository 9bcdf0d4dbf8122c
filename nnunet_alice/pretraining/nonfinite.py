"""Steps whose loss or gradients are NaN or infinite: they are skipped, and a run of them ends the training."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nnunet_alice.methods.distributed import max_over_ranks


class BufferCopies:
    """Copies of buffers, to take back what the forward pass of a skipped step has written into them.

    Args:
        buffers: centres, running statistics, counters: small, as they are copied before every step.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        self.buffers = list(buffers)
        self.copies = [buffer.clone() for buffer in self.buffers]

    def restore(self) -> None:
        """Give every buffer the value that it had, in place."""
        for buffer, copy in zip(self.buffers, self.copies, strict=True):
            buffer.copy_(copy)


class SkippedSteps:
    """Counts skipped steps in a row.

    Args:
        most: this many in a row end the training.

    Attributes:
        in_a_row: skipped steps since the last one that was not.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_a_row = 0

    def count(self, skipped: bool) -> None:
        """Count one step."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def too_many(self) -> bool:
        """Return whether the training should end."""
        return self.in_a_row >= self.most


def finite_on_all_ranks(loss: Tensor) -> bool:
    """Return whether the loss of every rank is finite. Every rank has to ask, and hears the same."""
    return not max_over_ranks((~torch.isfinite(loss.detach())).float()).bool().item()


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every number is finite; one look at the device for all tensors."""
    if not tensors:
        return True
    return bool(torch.stack([norm.isfinite() for norm in torch._foreach_norm(list(tensors), torch.inf)]).all())
