"""The affine augmentation: limits, axes, and agreement with scipy."""

import numpy as np
import torch
from scipy import ndimage

from nnunet_alice.views.affine_crops import AffineRange, apply_affine_to_crops, draw_affine

SPACING = (4.0, 2.0, 2.0)


def test_resampling_agrees_with_scipy():
    rng = np.random.default_rng(0)
    size = (8, 12, 10)
    crops_ = rng.normal(size=(5, 2, *size)).astype(np.float32)
    affines = np.stack([draw_affine(AffineRange(), size, SPACING, rng) for _ in range(5)])
    found = apply_affine_to_crops(torch.from_numpy(crops_), affines).numpy()
    middle = (np.asarray(size) - 1) / 2
    for crop, affine, result in zip(crops_, affines, found, strict=True):
        offset = middle - affine[:, :3] @ middle + affine[:, 3]
        for channel, expected in zip(crop, result, strict=True):
            by_scipy = ndimage.affine_transform(channel, affine[:, :3], offset, order=1, mode="nearest")
            np.testing.assert_allclose(expected, by_scipy, atol=1e-4)


def test_affine_stays_within_its_limits_and_does_not_shear():
    rng = np.random.default_rng(0)
    size = np.array((8, 32, 16))
    drawn = np.stack([draw_affine(AffineRange(), size, SPACING, rng) for _ in range(300)])
    share = drawn[:, :, 3] / size
    assert np.abs(share).max() <= 0.375 and np.abs(share).max(axis=0).min() > 0.35
    in_mm = drawn[:, :, :3] * np.asarray(SPACING)[:, None] / np.asarray(SPACING)
    scale = np.linalg.norm(in_mm, axis=1)  # of each axis, before it is turned
    assert 0.9 <= scale.min() < 0.905 and 1.095 < scale.max() <= 1.1
    assert np.abs(np.corrcoef(scale.T)[np.triu_indices(3, 1)]).max() < 0.2  # each axis has a factor of its own
    rotation = in_mm / scale[:, None, :]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (300, 3, 3)), atol=1e-9
    )
    angle = np.degrees(np.arccos((np.trace(rotation, axis1=1, axis2=2) - 1) / 2))
    assert 10 < angle.max() < 10 * np.sqrt(3) + 1
