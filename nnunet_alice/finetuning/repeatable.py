"""Augmentation that gives the same images again: nnU-Net's, without what depends on the machine's mood."""

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform


def without_timing(transforms: ComposeTransforms) -> ComposeTransforms:
    """Keep the blur from choosing its convolution (direct or by FFT) by which of them was faster just now.

    Both give the same up to rounding, and a training does not stay the same up to rounding.

    Args:
        transforms: a trainer's augmentation; changed in place.
    """
    for transform in transforms.transforms:
        inner: BasicTransform = transform.transform if isinstance(transform, RandomTransform) else transform
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return transforms
