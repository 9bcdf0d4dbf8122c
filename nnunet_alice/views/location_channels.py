"""Augmentation of images that carry coordinate channels: places move with the image, and keep their values."""

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

#: Transforms that move voxels without changing them (but by interpolation); all others do not see the coordinates.
MOVING = (SpatialTransform, MirrorTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)


class HideLastChannels(BasicTransform):
    """Applies a transform to an image without its last channels, which are put back untouched.

    Args:
        transform: what is applied.
        count: channels that it does not see.
    """

    def __init__(self, transform: BasicTransform, count: int) -> None:
        super().__init__()
        self.transform = transform
        self.count = count

    def apply(self, data_dict: dict, **params: Any) -> dict:
        """Apply the transform to the first channels of ``image`` (C, z, y, x), and to everything else."""
        image = data_dict["image"]
        hidden = image[-self.count :]
        result = self.transform(**data_dict | {"image": image[: -self.count]})
        return result | {"image": torch.cat((result["image"], hidden))}


def hide_from_intensities(transforms: ComposeTransforms, count: int) -> ComposeTransforms:
    """Let only the transforms that move voxels see the last ``count`` channels.

    The order stays, and so does what is drawn: with the same seed, the other channels come out as without those.

    Args:
        transforms: a trainer's augmentation.
        count: number of last channels that hold no intensities.
    """
    found: list[BasicTransform] = []
    run: list[BasicTransform] = []
    for transform in transforms.transforms:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        if not isinstance(inner, MOVING):
            run.append(transform)
            continue
        if run:
            found.append(HideLastChannels(ComposeTransforms(run), count))
            run = []
        found.append(transform)
    if run:
        found.append(HideLastChannels(ComposeTransforms(run), count))
    return ComposeTransforms(found)
