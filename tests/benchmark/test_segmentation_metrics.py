"""Dice and surface distances against naive loops over all pairs of surface voxels, and hand values."""

import numpy as np
import pytest

from nnunet_alice.benchmark.segmentation_metrics import agreement, surface_distances

SPACING = (2.0, 1.0, 0.5)


def surface(mask):
    """Surface voxels, one by one."""
    padded = np.pad(mask, 1)
    found = []
    for z, y, x in np.argwhere(mask) + 1:
        faces = [(z - 1, y, x), (z + 1, y, x), (z, y - 1, x), (z, y + 1, x), (z, y, x - 1), (z, y, x + 1)]
        if not all(padded[face] for face in faces):
            found.append((z - 1, y - 1, x - 1))
    return np.array(found) * SPACING


def naive_distances(one, other):
    a, b = surface(one), surface(other)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return distances.min(axis=1), distances.min(axis=0)


def blobs(seed):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, (9, 12, 14)), indexing="ij"), axis=-1)
    return [np.linalg.norm((grid - rng.uniform(3, 8, 3)) * (1, 0.8, 0.7), axis=-1) < rng.uniform(2, 4) for _ in "ab"]


@pytest.mark.parametrize("seed", range(4))
def test_against_all_pairs(seed):
    one, other = blobs(seed)
    there, back = naive_distances(one, other)
    for found, expected in zip(surface_distances(one, other, SPACING), (there, back), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    result = agreement(one, other, SPACING, tolerance_mm=1.0)
    assert result.dice == pytest.approx(2 * np.logical_and(one, other).sum() / (one.sum() + other.sum()))
    within = (there <= 1).sum() + (back <= 1).sum()
    assert result.surface_dice == pytest.approx(within / (len(there) + len(back)))
    assert result.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    swapped = agreement(other, one, SPACING, tolerance_mm=1.0)
    assert (swapped.dice, swapped.surface_dice, swapped.hd95_mm) == pytest.approx(
        (result.dice, result.surface_dice, result.hd95_mm)
    )


def test_a_shifted_box_by_hand():
    truth = np.zeros((10, 10, 10), dtype=bool)
    truth[2:6, 2:6, 2:6] = True
    shifted = np.roll(truth, 1, axis=0)
    result = agreement(shifted, truth, SPACING, tolerance_mm=2.0)
    assert result.dice == 0.75 and result.surface_dice == 1.0 and result.hd95_mm == 2.0
    assert agreement(shifted, truth, SPACING, tolerance_mm=0.4).surface_dice < 1
    same = agreement(truth, truth, SPACING)
    assert (same.dice, same.surface_dice, same.hd95_mm) == (1, 1, 0)


def test_empty_masks():
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    assert all(np.isnan(value) for value in vars(agreement(empty, empty, SPACING)).values())
    for pair in ((empty, full), (full, empty)):
        result = agreement(*pair, SPACING)
        assert (result.dice, result.surface_dice) == (0, 0)
        assert result.hd95_mm == pytest.approx(np.linalg.norm([8, 4, 2]))
    assert agreement(full, full, SPACING).surface_dice == 1


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) .* \(2, 2, 3\)"):
        agreement(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool), SPACING)
