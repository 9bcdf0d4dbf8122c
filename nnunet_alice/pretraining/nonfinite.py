"""What becomes of a step whose loss is NaN or infinite: it is left out, and a run of them ends the training."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nnunet_alice.methods.distributed import max_over_ranks


class BufferCopies:
    """Copies of buffers, to take back what the forward pass of a step that is left out has written into them.

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


class NonFiniteSteps:
    """Counts the steps in a row whose loss was not finite.

    Args:
        most: so many in a row end the training.

    Attributes:
        in_a_row: steps since the last finite one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_a_row = 0

    def leaves_out(self, loss: Tensor) -> bool:
        """Whether a step is left out: the loss of any rank is not finite. Every rank has to ask, and hears the same."""
        bad = max_over_ranks((~torch.isfinite(loss.detach())).float()).bool().item()
        self.in_a_row = self.in_a_row + 1 if bad else 0
        return bad

    def too_many(self) -> bool:
        """Whether the training should end."""
        return self.in_a_row >= self.most
