"""Steps whose loss or gradients are NaN or infinite: they are skipped, and a run of them ends the training."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_alice.errors import NonFiniteLossError
from nnunet_alice.methods.distributed import max_over_ranks
from nnunet_alice.training.ranks import of_all_ranks


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
        max_in_a_row: this many in a row end the training.

    Attributes:
        in_a_row: skipped steps since the last one that was not.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0

    def count(self, skipped: bool) -> None:
        """Count one step."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def too_many(self) -> bool:
        """Return whether the training should end."""
        return self.in_a_row >= self.max_in_a_row

    def report(self, what: str, own_cases: Iterable[str], epoch: int, slower: str, log: Callable[[str], None]) -> None:
        """Warn of a skipped step; give up after too many in a row. All ranks have to call it.

        Args:
            what: what was not finite, ``loss`` or ``gradients``.
            own_cases: cases of this rank's batch.
            epoch: when.
            slower: name of the same trainer with a lower learning rate.
            log: takes the warning.

        Raises:
            NonFiniteLossError: there were too many; the message names the cases.
        """
        cases = sorted(set(of_all_ranks(own_cases)))
        if self.too_many():
            raise NonFiniteLossError(self.in_a_row, epoch, cases, slower, what)
        log(
            f"WARNING: {'the loss is' if what == 'loss' else 'the gradients are'} not finite on the cases "
            f"{', '.join(cases)}: this step is left out ({self.in_a_row} in a row; {self.max_in_a_row} end the run)."
        )


def finite_on_all_ranks(loss: Tensor) -> bool:
    """Return whether the loss of every rank is finite. Every rank has to ask, and hears the same."""
    return not max_over_ranks((~torch.isfinite(loss.detach())).float()).bool().item()


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether every number is finite; one look at the device for all tensors."""
    if not tensors:
        return True
    return bool(torch.stack([norm.isfinite() for norm in torch._foreach_norm(list(tensors), torch.inf)]).all())


class GuardedOptimizer:
    """Keeps an optimiser that somebody else steps from making a step with gradients that are not finite.

    With a gradient scaler that is the scaler's work, and this only finds out. Without one, the gradients are taken away
    before such a step, and an optimiser leaves parameters without gradient alone, their state, too.

    Args:
        optimizer: its hooks are used; nothing else of it changes.
        scaled: whether a gradient scaler decides.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaled: bool) -> None:
        self._stepped, self._finite = False, True
        if not scaled:
            optimizer.register_step_pre_hook(self._take_away)
        optimizer.register_step_post_hook(self._note)

    def skipped(self) -> bool:
        """Return whether no step was made since this was last asked."""
        stepped, self._stepped = self._stepped, False
        return not stepped

    def _take_away(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._finite = all_finite(gradients)
        if not self._finite:
            optimizer.zero_grad(set_to_none=True)

    def _note(self, *_: Any) -> None:
        self._stepped = self._finite
