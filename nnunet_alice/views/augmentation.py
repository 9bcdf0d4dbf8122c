"""Mild intensity augmentation of views; never mirroring or large deformation: left and right are different anatomy."""

from collections.abc import Iterable, Iterator
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


def augmented(views: Iterable[np.ndarray], transform: BasicTransform | None, rng: np.random.Generator) -> Tensor:
    """Apply a transform of batchgeneratorsv2 to each view, with all its randomness drawn from ``rng``.

    All views of a batch belong into one call: keeping and restoring the global generators takes longer than many a
    transform.

    Args:
        views: (C, *patch) float32 each; may be changed in place.
        transform: e.g. :func:`mild_intensity_augmentation`; None for none.
        rng: source of a seed for each view.

    Returns:
        (N, C, *patch) float32 tensor.
    """
    if transform is None:
        return torch.stack([torch.from_numpy(view) for view in views])
    found = []
    with _global_randomness_kept():
        for view in views:
            seed = int(rng.integers(2**31))
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            found.append(transform(image=torch.from_numpy(view))["image"])
    return torch.stack(found)


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Restore numpy's and torch's global generators, which batchgeneratorsv2 draws from."""
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
