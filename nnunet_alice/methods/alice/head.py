"""From feature maps to prototype logits: pooling, tokens, normalisation and the shared head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_alice.methods.alice.norms import BatchNormBatchStatistics, TokenBatchNorm
from nnunet_alice.methods.alice.settings import AliceSettings
from nnunet_alice.methods.heads import PrototypeHead
from nnunet_alice.methods.precision import at_least_float32

_HIDDEN_PER_CHANNEL = 8
_MAX_HIDDEN = 2048


class HeadOutputs(NamedTuple):
    """Outputs of the head for B views.

    Attributes:
        cls: (B, K) logits of the view.
        embedding: (B, bottleneck_dim) unit vector of the view.
        encoder_tokens: (B, T_E, K) logits of the encoder tokens, None where not asked for.
        decoder_tokens: (B, T_D, K) logits of the decoder tokens, None where not asked for.
    """

    cls: Tensor
    embedding: Tensor
    encoder_tokens: Tensor | None
    decoder_tokens: Tensor | None


class AliceHead(nn.Module):
    """One MLP for view, encoder tokens and decoder tokens (iBOT's head; paper, sec. 3.2).

    Args:
        encoder_channels: channels of the bottleneck.
        decoder_channels: channels of the first decoder stage.
        settings: widths, pooling and normalisation.
    """

    def __init__(self, encoder_channels: int, decoder_channels: int, settings: AliceSettings) -> None:
        super().__init__()
        self.grid = 2 if settings.grid_pooling else 1
        self.max_tokens = settings.max_tokens
        width = encoder_channels * self.grid**3
        hidden = settings.hidden_dim or min(_MAX_HIDDEN, _HIDDEN_PER_CHANNEL * encoder_channels)
        self.view_norm = BatchNormBatchStatistics() if settings.batch_norm else nn.Identity()
        self.token_norm = TokenBatchNorm() if settings.batch_norm else nn.Identity()
        self.mlp = PrototypeHead(width, hidden, settings.bottleneck_dim, settings.prototypes)
        if settings.alignment:
            self.encoder_lift = _lift(encoder_channels, width)
        if settings.aligns_decoder:
            self.decoder_lift = _lift(decoder_channels, width)
        # What no loss reads must not wait for gradients: DistributedDataParallel would hang.
        self.mlp.last_layer_cls.requires_grad_(settings.contrast)
        self.mlp.last_layer_tokens.requires_grad_(settings.alignment)

    def forward(self, bottleneck: Tensor, decoder: Tensor | None = None, tokens: bool = True) -> HeadOutputs:
        """Return logits of views and, with ``tokens``, of tokens.

        Args:
            bottleneck: (B, C_E, z, y, x).
            decoder: (B, C_D, z, y, x), first decoder stage; None leaves decoder tokens out.
            tokens: False leaves all tokens out.
        """
        embedding = self.mlp.embed(self.view_norm(pool_view(bottleneck, self.grid)))
        encoder_tokens = decoder_tokens = None
        if tokens:
            encoder_tokens = self._token_logits(bottleneck, self.encoder_lift)
            if decoder is not None:
                decoder_tokens = self._token_logits(decoder, self.decoder_lift)
        return HeadOutputs(self.mlp.cls_logits(embedding), embedding, encoder_tokens, decoder_tokens)

    def _token_logits(self, features: Tensor, lift: nn.Linear) -> Tensor:
        z, y, x = (min(length, self.max_tokens) for length in features.shape[2:])
        tokens = functional.adaptive_avg_pool3d(features, (z, y, x)).flatten(2).transpose(1, 2)
        return self.mlp.token_logits(self.mlp.embed(lift(self.token_norm(tokens))))


def _lift(channels: int, width: int) -> nn.Linear:
    """Return the linear layer that brings tokens to the width of the views (paper, sec. 3.2)."""
    lift = nn.Linear(channels, width)
    nn.init.trunc_normal_(lift.weight, std=0.02)
    nn.init.zeros_(lift.bias)
    return lift


def pool_view(bottleneck: Tensor, grid: int) -> Tensor:
    """Return one vector a view: the bottleneck averaged in ``grid``^3 parts and concatenated.

    Args:
        bottleneck: (B, C, z, y, x).
        grid: parts per axis; an axis of a single voxel is repeated, so that the width never depends on the patch.

    Returns:
        (B, C * grid^3), at least float32.
    """
    return functional.adaptive_avg_pool3d(at_least_float32(bottleneck), grid).flatten(1)


def view_descriptors(bottleneck: Tensor) -> Tensor:
    """Return descriptors for retrieval, the same whatever head a network has: 2 x 2 x 2 pooling.

    Args:
        bottleneck: (B, C, z, y, x).

    Returns:
        (B, 8 C), at least float32, not normalised.
    """
    with torch.no_grad():
        return pool_view(bottleneck, 2)
