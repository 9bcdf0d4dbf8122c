"""Coarse and fine heads: every voxel gets two unit vectors, one for where it lies and one for what is there.

Paper: Yan et al., "SAM: Self-supervised Learning of Pixel-wise Anatomical Embeddings in Radiological Images", TMI
2022, sec. III-A. Deviation: the paper's fine head sits on a feature pyramid of its own; ours sits on the decoder of
the network of the plans, so that the trained decoder can be carried on too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

#: length of one descriptor in the paper (128 coarse, 128 fine)
DIMENSION = 128


class Descriptors(NamedTuple):
    """Descriptor maps of a batch, float32, of unit length along axis 1.

    Attributes:
        coarse: (B, D, z, y, x) at the stride of the bottleneck.
        fine: (B, D, z', y', x') at the stride of the last but one decoder stage.
    """

    coarse: Tensor
    fine: Tensor


def embedding_strides(strides_per_stage: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return strides of the two descriptor maps relative to the input.

    Args:
        strides_per_stage: stride of each encoder stage, first stage first, as the plans list them; the first is
            usually (1, 1, 1).

    Returns:
        coarse stride (bottleneck: all stages multiplied) and fine stride (last but one decoder stage: the first two
        stages multiplied), each with one entry per axis.

    Raises:
        ValueError: fewer than three stages; then there is no decoder stage between input and bottleneck.
    """
    if len(strides_per_stage) < 3:
        raise ValueError(f"The embedding needs a network of at least 3 stages, not {len(strides_per_stage)}.")
    coarse, fine = [1] * len(strides_per_stage[0]), [1] * len(strides_per_stage[0])
    for stage, strides in enumerate(strides_per_stage):
        coarse = [c * s for c, s in zip(coarse, strides, strict=True)]
        if stage < 2:
            fine = [f * s for f, s in zip(fine, strides, strict=True)]
    return tuple(coarse), tuple(fine)


class EmbeddingHeads(nn.Module):
    """1x1x1 convolutions on two feature maps of a U-Net, L2-normalised.

    Args:
        coarse_channels: channels of the bottleneck map.
        fine_channels: channels of the last but one decoder stage.
        coarse_stride: (3,) stride of the bottleneck map relative to the input.
        fine_stride: (3,) stride of the decoder stage relative to the input.
        dimension: length D of a descriptor.

    Raises:
        ValueError: the fine map is not finer than the coarse one.
    """

    def __init__(
        self,
        coarse_channels: int,
        fine_channels: int,
        coarse_stride: Sequence[int],
        fine_stride: Sequence[int],
        dimension: int = DIMENSION,
    ) -> None:
        super().__init__()
        self.coarse_stride, self.fine_stride = tuple(coarse_stride), tuple(fine_stride)
        if len(self.coarse_stride) != 3 or len(self.fine_stride) != 3:
            raise ValueError(f"Strides need three axes, got {self.coarse_stride} and {self.fine_stride}.")
        if any(c < f for c, f in zip(self.coarse_stride, self.fine_stride, strict=True)) or (
            self.coarse_stride == self.fine_stride
        ):
            raise ValueError(f"The fine stride {self.fine_stride} is not finer than the coarse {self.coarse_stride}.")
        self.coarse = nn.Conv3d(coarse_channels, dimension, kernel_size=1)
        self.fine = nn.Conv3d(fine_channels, dimension, kernel_size=1)

    def forward(self, coarse_map: Tensor, fine_map: Tensor) -> Descriptors:
        """Return descriptors of a batch.

        Args:
            coarse_map: (B, C_coarse, z, y, x), the bottleneck.
            fine_map: (B, C_fine, z', y', x'), the last but one decoder stage.
        """
        # Normalised in float32: under mixed precision a sum of 128 squares in half precision loses its last digits.
        return Descriptors(
            F.normalize(self.coarse(coarse_map).float(), dim=1), F.normalize(self.fine(fine_map).float(), dim=1)
        )
