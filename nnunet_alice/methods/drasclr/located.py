"""A U-Net whose encoder is conditioned on where in the atlas its input lies, told by three more input channels.

The last `COORDINATE_CHANNELS` input channels hold atlas coordinates (z, y, x) of every voxel, as the integers that
`encode_locations` makes: `MIDDLE` + `HALF_EXTENT` * location, where a location of -1 and 1 is the end of the atlas
array. 0 means "no image here", which is what every padding writes (nnU-Net's loader, its augmentation, its sliding
window). Valid values lie far from 0 in comparison with their range, so that a voxel that interpolation mixed with the
outside is told from a place: one that is less than nine tenths inside falls below all valid values.

A tile's location is the mean over its valid voxels; the channels are never convolved. Mirroring and resampling move
image and coordinates alike and leave that mean what it was.
"""

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_alice.methods.drasclr.conversion import to_conditional

#: Channels of coordinates, behind those of the image.
COORDINATE_CHANNELS = 3
#: Code of location 0, and of what lies between location 0 and 1.
MIDDLE, HALF_EXTENT = 10_000, 1_000


def encode_locations(locations: np.ndarray) -> np.ndarray:
    """Atlas coordinates as what the coordinate channels hold.

    Args:
        locations: any shape, in [-1, 1]; beyond that they are clipped, as the atlas knows no place there.

    Returns:
        int16 of the same shape.
    """
    return np.rint(MIDDLE + HALF_EXTENT * np.clip(locations, -1, 1)).astype(np.int16)


def decode_locations(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Atlas coordinates in coordinate channels.

    Args:
        channels: (B, 3, z, y, x).

    Returns:
        locations (B, 3, z, y, x) in [-1, 1], and bool (B, 1, z, y, x): where they are valid.
    """
    # Half a code of tolerance: interpolation between equal integers may end a rounding error below them.
    valid = (channels >= MIDDLE - HALF_EXTENT - 0.5).all(dim=1, keepdim=True)
    return ((channels - MIDDLE) / HALF_EXTENT).clamp(-1, 1), valid


def tile_locations(channels: Tensor) -> Tensor:
    """Where each tile lies: the mean of its valid coordinates.

    Args:
        channels: (B, 3, z, y, x) coordinate channels.

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
        generator: random source of the experts; torch's global one if None.

    Attributes:
        encoder: the `ConditionalEncoder`.
        decoder: the decoder.

    Raises:
        ValueError: the network is not 3D, or has no encoder and decoder.
    """

    def __init__(
        self,
        network: nn.Module,
        num_experts: int = 8,
        *,
        location_gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not (hasattr(network, "encoder") and hasattr(network, "decoder")):
            raise ValueError(f"{type(network).__name__} has no encoder and decoder; take plans of one of the U-Nets.")
        self.encoder = to_conditional(network.encoder, num_experts, location_gain=location_gain, generator=generator)
        self.decoder = network.decoder
        # The decoder remembers the encoder that it was built for, under which all weights would appear again.
        self.decoder.encoder = None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment tiles.

        Args:
            x: (B, C + 3, z, y, x): image, then coordinate channels.

        Returns:
            the decoder's logits, a list of them with deep supervision.
        """
        image, channels = x[:, :-COORDINATE_CHANNELS], x[:, -COORDINATE_CHANNELS:]
        return self.decoder(self.encoder(image, tile_locations(channels)))
