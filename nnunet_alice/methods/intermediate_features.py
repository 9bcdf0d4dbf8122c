"""What the methods read inside an nnU-Net network: bottleneck, decoder stages and output, in one pass.

Works for every network that has ``encoder`` (returns the list of skips) and nnU-Net's ``UNetDecoder`` as
``decoder``: PlainConvUNet and ResidualEncoderUNet. The network itself stays untouched, so its weights carry on.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_alice.methods.unets import decoder_of, encoder_of


class UNetMaps(NamedTuple):
    """Feature maps of one pass.

    Attributes:
        bottleneck: (B, C_E, *patch / total stride), output of the last encoder stage.
        decoder: outputs of the decoder stages that ran, lowest resolution first; (B, C_s, ...) each.
        output: (B, C_out, *patch), the last segmentation layer's output; None unless all stages ran.
    """

    bottleneck: Tensor
    decoder: tuple[Tensor, ...]
    output: Tensor | None


class IntermediateFeatures(nn.Module):
    """Run a U-Net as far as asked and give its intermediate maps.

    Args:
        network: nnU-Net network with ``encoder`` and ``decoder``; held, not copied.

    Raises:
        TypeError: the network has no such encoder and decoder.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        decoder = getattr(network, "decoder", None)
        if not hasattr(network, "encoder") or not all(
            hasattr(decoder, part) for part in ("stages", "transpconvs", "seg_layers")
        ):
            raise TypeError(
                f"{type(network).__name__} is not a U-Net with nnU-Net's encoder and UNetDecoder; "
                "use plans with PlainConvUNet or ResidualEncoderUNet."
            )
        self.network = network

    def forward(self, x: Tensor, decoder_stages: int | None = None) -> UNetMaps:
        """Run the encoder and the first ``decoder_stages`` decoder stages (None: all, and the output layer).

        Args:
            x: (B, C, *patch).
            decoder_stages: 0 runs the encoder alone.
        """
        decoder = decoder_of(self.network)
        skips = encoder_of(self.network)(x)
        stages = len(decoder.stages) if decoder_stages is None else decoder_stages
        below, maps = skips[-1], []
        for stage in range(stages):
            below = decoder.transpconvs[stage](below)
            below = decoder.stages[stage](torch.cat((below, skips[-(stage + 2)]), 1))
            maps.append(below)
        output = decoder.seg_layers[-1](below) if decoder_stages is None else None
        return UNetMaps(skips[-1], tuple(maps), output)


def freeze_unused_decoder(network: nn.Module, decoder_stages: int | None = None) -> None:
    """Take out of training what a pass of ``decoder_stages`` decoder stages (None: all, and the output) never uses.

    nnU-Net builds a segmentation layer for every stage so that weights load whatever deep supervision says; only the
    last is ever used here. Left trainable, such parts would make DistributedDataParallel wait for gradients that
    never come.
    """
    decoder = decoder_of(network)
    used = len(decoder.stages) if decoder_stages is None else decoder_stages
    output_layers = decoder.seg_layers[:-1] if decoder_stages is None else decoder.seg_layers
    for module in (*decoder.stages[used:], *decoder.transpconvs[used:], *output_layers):
        module.requires_grad_(False)
