"""``L_reg``: every voxel has to say which region of the atlas it belongs to (ours, not in the paper).

The labels come from a registration, not from a reader. This is the term that teaches the *decoder* anatomy: the
paper's contrastive terms reach its first stage alone, and reconstruction asks for intensities.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_alice.methods.precision import at_least_float32

#: Decoder stages that are asked: the last ones, at highest resolution.
MAX_STAGES = 3
#: Voxels between two labels on every axis. With 100 regions the logits of all voxels would outgrow the network.
GRID_STEP = 3


def grid_size(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return how many labels a view has on every axis: one in ``GRID_STEP`` voxels, at least one."""
    return tuple(max(1, int(length) // GRID_STEP) for length in patch_size)


class RegionHead(nn.Module):
    """One linear layer for each of the last decoder stages: features of a voxel -> logits of the regions.

    Args:
        channels: channels of the decoder stages, lowest resolution first.
        regions: number of regions.

    Raises:
        ValueError: there are fewer than two regions.
    """

    def __init__(self, channels: Sequence[int], regions: int) -> None:
        super().__init__()
        if regions < 2:
            raise ValueError(f"L_reg needs at least 2 regions, got {regions}.")
        self.layers = nn.ModuleList(nn.Linear(width, regions) for width in channels[-MAX_STAGES:])

    def forward(self, decoder: Sequence[Tensor], first: Tensor) -> list[Tensor]:
        """Return logits at every ``GRID_STEP``-th voxel; lower stages answer for the voxels that they cover.

        Args:
            decoder: maps of all decoder stages, lowest resolution first; the last has the size of the views.
            first: (3,) int64, the first voxel on every axis, below ``GRID_STEP`` and inside the view.

        Returns:
            for each layer (B, *grid_size(patch), regions).
        """
        patch = decoder[-1].shape[2:]
        logits = []
        for layer, features in zip(self.layers, decoder[-len(self.layers) :], strict=True):
            for axis, points in enumerate(grid_size(patch)):
                voxels = first[axis] + GRID_STEP * torch.arange(points, device=features.device)
                covering = voxels * features.shape[2 + axis] // patch[axis]
                features = features.index_select(2 + axis, covering)
            logits.append(layer(features.movedim(1, -1)))
        return logits


def region_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return ``L_reg``: cross-entropy of the regions, averaged over labelled voxels and decoder stages.

    Args:
        logits: for each stage (B, z, y, x, K).
        labels: (B, z, y, x) int64, 1 to K; 0 where nothing is known.

    Returns:
        scalar, at least float32; 0, with a gradient of 0, where no voxel has a label.

    Raises:
        ValueError: shapes do not fit.
    """
    known = labels > 0
    count = known.sum().clamp_min(1)
    losses = []
    for stage in logits:
        if stage.shape[:-1] != labels.shape:
            raise ValueError(f"Logits {tuple(stage.shape)} do not fit labels {tuple(labels.shape)}.")
        each = F.cross_entropy(at_least_float32(stage).movedim(-1, 1), (labels - 1).clamp_min(0), reduction="none")
        losses.append((each * known).sum() / count)
    return torch.stack(losses).mean()


@torch.no_grad()
def region_accuracy(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the share of labelled voxels whose region the last stage names; NaN where none has a label."""
    known = labels > 0
    return ((logits[-1].argmax(-1) + 1 == labels) & known).sum() / known.sum()
