"""A U-Net whose encoder is conditioned on where in the atlas its input lies, told by four more input channels.

The last `COORDINATE_CHANNELS` input channels hold homogeneous coordinates, as integers: a weight, and the weight times
``1 + location / 2`` for z, y and x. The atlas array ends at locations -1 and 1. All four are 0 where
there is no image, which is what every padding writes (nnU-Net's loader, its augmentation, its sliding window).

Locations are read off as quotients by the weight. At the edge of the image, interpolation mixes all channels with the
same zeros, and one of order 3 overshoots by a tenth of the values, several voxels deep: both cancel in the quotient.
nnU-Net's resampling clips every slice to the values that came in, which would cut the overshoot of the weight alone; so
one voxel in every slice is heavier than all others, and one lighter. Where the weight is less than half, there is no
image.

A tile's location is the mean over its valid voxels; the channels are never convolved. Mirroring and resampling move
image and coordinates alike and leave that mean what it was.
"""

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_alice.methods.drasclr.conversion import to_conditional
from nnunet_alice.methods.unets import decoder_of, encoder_of

#: Channels of coordinates, behind those of the image: the weight, then z, y and x.
COORDINATE_CHANNELS = 4
#: The weight of an image's voxels, and of the two voxels a slice that make room for overshoot.
WEIGHT, HEAVY_WEIGHT, LIGHT_WEIGHT = 8_000, 12_000, 6_000
#: Locations beyond the atlas keep growing up to here: a bend at its end would make resampling overshoot there.
_REACH = 1.5


def location_weights(inside: np.ndarray) -> np.ndarray:
    """Return the weight channel of an image.

    Args:
        inside: (z, y, x) bool, where there is an image.

    Returns:
        (z, y, x) int16. Where there are zeros at all, one voxel somewhere in every slice across each axis is heavy and
        one light. They are strewn, as neighbours would overshoot together.
    """
    weights = np.where(inside, WEIGHT, 0).astype(np.int16)
    if inside.all():
        return weights
    rng = np.random.default_rng(0)
    for axis in range(3):
        for part, where in zip(np.moveaxis(weights, axis, 0), np.moveaxis(inside, axis, 0), strict=True):
            found = np.flatnonzero(where)
            if len(found):
                for chosen, weight in zip(rng.choice(found, 2), (LIGHT_WEIGHT, HEAVY_WEIGHT), strict=True):
                    part[np.unravel_index(chosen, part.shape)] = weight
    return weights


def encode_locations(locations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return atlas coordinates as what a coordinate channel holds: int16 of the same shape.

    Args:
        locations: any shape; half as far again as the atlas reaches they are clipped.
        weights: of the same shape, from `location_weights`.
    """
    return np.rint(weights * (1 + np.clip(locations, -_REACH, _REACH) / 2)).astype(np.int16)


def decode_locations(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return atlas coordinates in coordinate channels.

    Args:
        channels: (B, 4, z, y, x).

    Returns:
        locations (B, 3, z, y, x), clipped to [-1, 1] as the atlas knows no place beyond, and where they are valid,
        bool (B, 1, z, y, x).
    """
    weight = channels[:, :1]
    valid = weight >= WEIGHT / 2
    return (2 * (channels[:, 1:] / torch.where(valid, weight, 1) - 1)).clamp(-1, 1), valid


def tile_locations(channels: Tensor) -> Tensor:
    """Return where each tile lies: the mean of its valid coordinates.

    Args:
        channels: (B, 4, z, y, x) coordinate channels.

    Returns:
        (B, 3) in [-1, 1]; the middle of the atlas, (0, 0, 0), for a tile without a valid voxel.
    """
    locations, valid = decode_locations(channels)
    total = torch.where(valid, locations, 0).sum(dim=(2, 3, 4))
    return total / valid.sum(dim=(2, 3, 4)).clamp_min(1)


class LocatedUNet(nn.Module):
    """One of nnU-Net's U-Nets with a location-conditioned encoder.

    Args:
        network: nnU-Net's U-Net for the image channels alone; its decoder is taken over, its encoder is copied.
        num_experts: E, expert kernels of each convolution.
        location_gain: initial size of the routing's dependence on the location, see `to_conditional`.

    Attributes:
        encoder: the `ConditionalEncoder`.
        decoder: the decoder.

    Raises:
        ValueError: the network is not 3D, or has no encoder and decoder.
    """

    def __init__(self, network: nn.Module, num_experts: int = 8, *, location_gain: float = 1.0) -> None:
        super().__init__()
        if not (hasattr(network, "encoder") and hasattr(network, "decoder")):
            raise ValueError(f"{type(network).__name__} has no encoder and decoder; take plans of one of the U-Nets.")
        self.encoder = to_conditional(encoder_of(network), num_experts, location_gain=location_gain)
        self.decoder = decoder_of(network)
        # The decoder remembers the encoder that it was built for, under which all weights would appear again.
        self.decoder.encoder = None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment tiles.

        Args:
            x: (B, C + 4, z, y, x): image, then coordinate channels.

        Returns:
            the decoder's logits, a list of them with deep supervision.
        """
        image, channels = x[:, :-COORDINATE_CHANNELS], x[:, -COORDINATE_CHANNELS:]
        return self.decoder(self.encoder(image, tile_locations(channels)))
