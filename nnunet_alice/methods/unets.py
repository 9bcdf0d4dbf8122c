"""What the package reads of nnU-Net's U-Nets, with types, which torch and nnU-Net leave open."""

from collections.abc import Sequence
from typing import cast

from torch import nn


class UNetEncoder(nn.Module):
    """What is read of an encoder of ``dynamic_network_architectures``; for annotations alone, never made.

    Attributes:
        strides: of every stage, one number an axis.
        output_channels: of every stage.
    """

    strides: Sequence[Sequence[int]]
    output_channels: Sequence[int]

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Return the number of elements of all feature maps at an input size, voxels."""
        raise NotImplementedError


class UNetDecoder(nn.Module):
    """What is read of ``dynamic_network_architectures.UNetDecoder``; for annotations alone, never made.

    Attributes:
        stages, transpconvs, seg_layers: one module a stage, lowest resolution first.
        encoder: the encoder that the decoder was built for.
    """

    stages: nn.ModuleList
    transpconvs: nn.ModuleList
    seg_layers: nn.ModuleList
    encoder: nn.Module | None


class UNet(nn.Module):
    """What is read of a U-Net of ``dynamic_network_architectures``; for annotations alone, never made."""

    encoder: UNetEncoder
    decoder: UNetDecoder


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether any part of a module normalises over the batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def encoder_of(network: nn.Module) -> UNetEncoder:
    """Return the encoder of one of nnU-Net's U-Nets."""
    return cast(UNet, network).encoder


def decoder_of(network: nn.Module) -> UNetDecoder:
    """Return the decoder of one of nnU-Net's U-Nets."""
    return cast(UNet, network).decoder
