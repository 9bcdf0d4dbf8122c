"""Batch normalisation at the head's inputs: what keeps the discriminative terms alive on InstanceNorm networks.

InstanceNorm leaves little but the channel's bias in a pooled map, the same for every volume. A token's index in
the crop explains most of what is left in a token. Both constants are removed by normalising over the batch. This
deviates from the paper, whose transformer needs none of it.
"""

import torch
from torch import Tensor, nn

from nnunet_alice.methods.distributed import mean_over_ranks, world_size
from nnunet_alice.methods.precision import at_least_float32

#: added to the variance, as in ``nn.BatchNorm1d``
EPS = 1e-5


class BatchNormBatchStatistics(nn.Module):
    """BatchNorm over the first axis with batch statistics only: no affine parameters, no running statistics.

    Every other position is normalised on its own: per channel for (B, D). Statistics are always those of the batch, in
    eval mode and in the teacher too, and carry gradient. With a process group they are those of all ranks' rows, whose
    numbers may differ. The gradients are those of a single process on all the rows. Computed in float32, also
    under autocast. There is no state: ``state_dict`` is empty.

    Attributes:
        axes: of its input.
    """

    axes = "(B, D)"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the batch.

        Args:
            x: (B, ...), B rows of this rank.

        Returns:
            Tensor of the same shape and dtype; over the batch of all ranks, each position has mean 0 and (biased)
            variance 1, up to `EPS`.

        Raises:
            ValueError: If ``x`` has a different number of axes, or if there is one row only.
        """
        if x.ndim != len(self.axes.split()):
            raise ValueError(f"Expected {self.axes}, got shape {tuple(x.shape)}.")
        return _normalise(x)


class TokenBatchNorm(BatchNormBatchStatistics):
    """`BatchNormBatchStatistics` for tokens: per (token index, channel) over the batch.

    What all crops share at a token's index is removed, so that the index itself cannot serve as the token's code.
    """

    axes = "(B, T, D)"


def _normalise(x: Tensor) -> Tensor:
    """Subtract the mean over the first axis and divide by the standard deviation, over all ranks."""
    if x.shape[0] * world_size() < 2:
        raise ValueError("Batch normalisation needs at least 2 rows in the batch, got 1.")
    with torch.autocast(x.device.type, enabled=False):
        values = at_least_float32(x)
        # Rows of a rank's batch: a mean of per-rank means would be wrong where ranks hold unequal numbers of rows.
        rows = mean_over_ranks(values.new_full((), float(x.shape[0])))
        # Two passes: the mean of squares minus the squared mean loses all digits where the spread is small.
        centred = values - mean_over_ranks(values.sum(dim=0)) / rows
        variance = mean_over_ranks(centred.square().sum(dim=0)) / rows
        return (centred * torch.rsqrt(variance + EPS)).to(x.dtype)
