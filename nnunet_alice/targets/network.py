"""An encoder of nnU-Net with a small head on its pooled features."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nnunet_alice.errors import InputError


class PooledEncoder(nn.Module):
    """The plans' encoder and a head: crops in, one row of outputs a crop.

    A channel is pooled to its mean and its standard deviation over the crop. The mean alone says little: behind
    InstanceNorm it is nearly the channel's bias, whatever the image.

    Args:
        encoder: of one of nnU-Net's U-Nets; gives its stages, bottleneck last.
        outputs: numbers that the head gives.
        stages: so many last stages are pooled.
        dropout: of the pooled features.

    Attributes:
        width: F, number of pooled features.
    """

    def __init__(self, encoder: nn.Module, outputs: int, stages: int, dropout: float) -> None:
        super().__init__()
        widths = cast(Sequence[int], encoder.output_channels)
        if stages > len(widths):
            raise InputError(f"{stages} stages cannot be pooled, the encoder has {len(widths)}.").about(value=stages)
        self.encoder = encoder
        self.stages = stages
        self.width = 2 * sum(widths[-stages:])
        self.head = nn.Sequential(nn.LayerNorm(self.width), nn.Dropout(dropout), nn.Linear(self.width, outputs))

    def features(self, crops: Tensor) -> Tensor:
        """Return pooled features (B, F) float32 of crops (B, C, z, y, x)."""
        pooled = []
        for stage in self.encoder(crops)[-self.stages :]:
            values = stage.float().flatten(2)  # sums of half precision would overflow
            deviation, mean = torch.std_mean(values, dim=2, correction=0)
            pooled += [mean, deviation]
        return torch.cat(pooled, dim=1)

    def forward(self, crops: Tensor) -> Tensor:
        """Return outputs (B, outputs) of crops (B, C, z, y, x)."""
        return self.head(self.features(crops))


def pooled_encoder(unet: nn.Module, outputs: int, stages: int, dropout: float) -> PooledEncoder:
    """Return the encoder of a U-Net with a head; the decoder is dropped.

    Raises:
        InputError: the network has no encoder in stages.
    """
    encoder: Any = getattr(unet, "encoder", None)
    if not hasattr(encoder, "output_channels") or not getattr(encoder, "return_skips", False):
        raise InputError(
            f"{type(unet).__name__} has no encoder in stages; take plans of one of nnU-Net's U-Nets."
        ).about(value=type(unet).__name__)
    return PooledEncoder(encoder, outputs, stages, dropout)
