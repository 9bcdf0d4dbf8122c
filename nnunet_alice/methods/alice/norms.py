"""Batch normalisation at the head's inputs: what keeps the discriminative terms alive on InstanceNorm networks.

InstanceNorm leaves little but the channel's bias in a pooled map, the same for every volume. A token's index in
the crop explains most of what is left in a token. Both constants are removed by normalising over the batch. This
deviates from the paper, whose transformer needs none of it.
"""

import torch
from torch import Tensor, nn

from nnunet_alice.methods.distributed import mean_over_ranks, world_size


class BatchNormBatchStatistics(nn.Module):
    """BatchNorm over the first axis with batch statistics only: no affine parameters, no running statistics.

    Every other position is normalised on its own: per channel for (B, D). Statistics are always those of the batch, in
    eval mode and in the teacher too, and carry gradient. With a process group they are those of all ranks' rows, whose
    numbers may differ. The gradients are those of a single process on all the rows. Computed in float32, also
    under autocast. There is no state: ``state_dict`` is empty.

    Attributes:
        eps: Added to the variance.
    """

    def __init__(self, eps: float = 1e-5):
        """Create the layer.

        Args:
            eps: Added to the variance; 1e-5 as in ``nn.BatchNorm1d``.

        Raises:
            ValueError: If ``eps`` is not positive.
        """
        super().__init__()
        if eps <= 0:
            raise ValueError(f"eps must be positive, got {eps}.")
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the batch.

        Args:
            x: (B, D), B rows of this rank.

        Returns:
            Tensor of the same shape and dtype; over the batch of all ranks, each position has mean 0 and (biased)
            variance 1, up to ``eps``.

        Raises:
            ValueError: If ``x`` has a different number of axes, or if there is one row only.
        """
        if x.ndim != 2:
            raise ValueError(f"Expected (B, D), got shape {tuple(x.shape)}.")
        return _normalise(x, self.eps)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"eps={self.eps}"


class TokenBatchNorm(BatchNormBatchStatistics):
    """`BatchNormBatchStatistics` for tokens: per (token index, channel) over the batch.

    What all crops share at a token's index is removed, so that the index itself cannot serve as the token's code.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the batch.

        Args:
            x: (B, T, D), T tokens of each of the B rows of this rank.

        Returns:
            Tensor of the same shape and dtype; see `BatchNormBatchStatistics.forward`.

        Raises:
            ValueError: If ``x`` has a different number of axes, or if there is one row only.
        """
        if x.ndim != 3:
            raise ValueError(f"Expected (B, T, D), got shape {tuple(x.shape)}.")
        return _normalise(x, self.eps)


def _normalise(x: Tensor, eps: float) -> Tensor:
    """Subtract the mean over the first axis and divide by the standard deviation, over all ranks."""
    if x.shape[0] * world_size() < 2:
        raise ValueError("Batch normalisation needs at least 2 rows in the batch, got 1.")
    with torch.autocast(x.device.type, enabled=False):
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # Rows of a rank's batch: a mean of per-rank means would be wrong where ranks hold unequal numbers of rows.
        rows = mean_over_ranks(values.new_full((), float(x.shape[0])))
        # Two passes: the mean of squares minus the squared mean loses all digits where the spread is small.
        centred = values - mean_over_ranks(values.sum(dim=0)) / rows
        variance = mean_over_ranks(centred.square().sum(dim=0)) / rows
        return (centred * torch.rsqrt(variance + eps)).to(x.dtype)
