"""Losses of predictions of whole cases; outputs and truth in, a number out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_alice.methods.distributed import gather_rows


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with a weight a class.

    The mean is over cases, not over weights: a batch of one class then counts by that class's weight.

    Args:
        weights: one a class.
    """

    weights: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32))

    def forward(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of logits (B, classes) and the number of the class (B, 1)."""
        return functional.cross_entropy(outputs.float(), truth[:, 0].long(), self.weights, reduction="sum") / len(truth)


class MaskedBinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of several labels, each of which may be unknown.

    Args:
        positive_weights: one a label, of its positive cases.
    """

    positive_weights: Tensor

    def __init__(self, positive_weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("positive_weights", torch.tensor(list(positive_weights), dtype=torch.float32))

    def forward(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of logits and truth (B, labels) of 0, 1 and NaN (unknown), mean over the known."""
        known = ~truth.isnan()
        losses = functional.binary_cross_entropy_with_logits(
            outputs.float(), truth.nan_to_num(), pos_weight=self.positive_weights, reduction="none"
        )
        return (losses * known).sum() / known.sum().clamp(min=1)


class StandardisedHuber(nn.Module):
    """Huber loss on targets in standard deviations from the mean; outputs are in these units.

    Args:
        means: one a column.
        deviations: one a column, above 0.
        delta: error from which the loss grows linearly.
    """

    means: Tensor
    deviations: Tensor

    def __init__(self, means: Sequence[float], deviations: Sequence[float], delta: float) -> None:
        super().__init__()
        self.register_buffer("means", torch.tensor(list(means), dtype=torch.float32))
        self.register_buffer("deviations", torch.tensor(list(deviations), dtype=torch.float32))
        self.delta = delta

    def forward(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of outputs (B, columns) and truth (B, columns) in its own units."""
        return functional.huber_loss(outputs.float(), (truth - self.means) / self.deviations, delta=self.delta)


def cox_loss(risks: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """Return negative log partial likelihood of Cox's model, ties as in Breslow, mean over the events.

    Args:
        risks: (N,) log hazard ratios.
        times: (N,) until the event or the end of observation.
        events: (N,) bool; False is censored.

    Returns:
        0 without an event.
    """
    order = torch.argsort(times, descending=True)
    risks, times, events = risks[order], times[order], events[order]
    # the risk set of a time: everybody who is observed at least as long, those with the same time included
    last = torch.searchsorted(-times.contiguous(), -times.contiguous(), right=True) - 1
    at_risk = torch.logcumsumexp(risks, dim=0)[last]
    return ((at_risk - risks) * events).sum() / events.sum().clamp(min=1)


class CoxLoss(nn.Module):
    """Cox's loss whose risk sets are all training cases, not the few of a batch.

    The risk that every case had when it was last seen is remembered. In training it stands in, without gradient, for
    the cases that are not in the batch. The loss is scaled so that the gradient of a case does not depend on how many
    cases there are. In evaluation the risk sets are the batch.

    Args:
        times: (N,) of the training cases.
        events: (N,) of the training cases.
    """

    times: Tensor
    events: Tensor
    risks: Tensor
    seen: Tensor

    def __init__(self, times: Sequence[float], events: Sequence[bool]) -> None:
        super().__init__()
        self.register_buffer("times", torch.tensor(list(times), dtype=torch.float32))
        self.register_buffer("events", torch.tensor(list(events), dtype=torch.bool))
        self.register_buffer("risks", torch.zeros(len(self.times)))
        self.register_buffer("seen", torch.zeros(len(self.times), dtype=torch.bool))

    def forward(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of log hazard ratios (B, 1) and truth (B, 3): time, event, number of the case."""
        risks = outputs[:, 0].float()
        if not self.training:
            return cox_loss(risks, truth[:, 0], truth[:, 1].bool())
        cases = truth[:, 2].long()
        seen_by_all = gather_rows(torch.stack([cases.float(), risks.detach()], dim=1))
        seen_by_all = seen_by_all[seen_by_all[:, 1].isfinite()]  # else one bad step would spoil those after it
        self.risks[seen_by_all[:, 0].long()] = seen_by_all[:, 1]
        self.seen[seen_by_all[:, 0].long()] = True
        # index_put, and not assignment, as the batch's own risks keep their gradient
        everybody, seen = self.risks.clone().index_put((cases,), risks), self.seen.clone()
        seen[cases] = True
        loss = cox_loss(everybody[seen], self.times[seen], self.events[seen])
        return loss * seen.sum() / len(cases)
