"""Mild intensity augmentation of views; never mirroring or large deformation: left and right are different anatomy."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor


def mild_intensity_augmentation(probability: float = 0.3) -> BasicTransform:
    """Return noise, brightness, contrast and gamma, each with ``probability``.

    Noise has nnU-Net's strength; brightness, contrast and gamma about a third of it.
    Intensities are nnU-Net's normalised ones (about zero mean, unit variance).
    """
    return ComposeTransforms(
        [
            RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.1)), apply_probability=probability),
            RandomTransform(
                MultiplicativeBrightnessTransform(multiplier_range=(0.9, 1.1), synchronize_channels=False),
                apply_probability=probability,
            ),
            RandomTransform(
                ContrastTransform(contrast_range=(0.9, 1.1), preserve_range=True, synchronize_channels=False),
                apply_probability=probability,
            ),
            RandomTransform(
                GammaTransform(
                    gamma=(0.9, 1.1), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
                ),
                apply_probability=probability,
            ),
        ]
    )


def augment(view: np.ndarray, transform: BasicTransform, rng: np.random.Generator) -> Tensor:
    """Apply a transform of batchgeneratorsv2 to one view, with all its randomness drawn from ``rng``.

    Args:
        view: (C, *patch) float32; may be changed in place.
        transform: e.g. :func:`mild_intensity_augmentation`.
        rng: source of the seed.

    Returns:
        (C, *patch) float32 tensor.
    """
    with _global_randomness_from(int(rng.integers(2**31))):
        return transform(image=torch.from_numpy(view))["image"]


@contextmanager
def _global_randomness_from(seed: int) -> Iterator[None]:
    """Seed numpy's and torch's global generators, which batchgeneratorsv2 draws from, and restore them after."""
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
