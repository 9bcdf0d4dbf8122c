"""Overlapping crops: every voxel is where its affine says, padding is zero and known as padding."""

import numpy as np
import pytest

from nnunet_alice.affine import Affine
from nnunet_alice.views.overlap import Crop, CropPlace, OverlapSampler, cut, overlapping_crops

SPACING = (3.0, 1.0, 0.5)


def coordinate_image(shape, spacing=SPACING) -> np.ndarray:
    """(4, *shape): position of every voxel in mm, and a channel of ones that shows where the volume is."""
    grids = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    return np.stack([*grids, np.ones(shape)]).astype(np.float32)


def all_voxels(crop: Crop) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, crop.image.shape[1:]), indexing="ij"), axis=-1).reshape(-1, 3)


@pytest.mark.parametrize("shape", [(30, 40, 50), (9, 40, 13), (7, 8, 9)])
def test_positions_are_those_of_the_resampled_voxels(shape):
    image = coordinate_image(shape)
    rng = np.random.default_rng(0)
    sampler = OverlapSampler((12, 16, 16))
    for _ in range(20):
        point = rng.random(3) * (np.asarray(shape) - 1)
        for crop in overlapping_crops(image, point, SPACING, sampler, rng):
            positions = Affine(crop.affine).points(all_voxels(crop))
            valid = ((positions >= -1e-6) & (positions <= crop.extent_mm + 1e-6)).all(axis=1)
            shown = crop.image.reshape(4, -1)
            error_vox = np.abs(shown[:3, valid].T - positions[valid]) / SPACING
            assert error_vox.max() < 0.01
            np.testing.assert_allclose(shown[3, valid], 1, atol=1e-5)
            assert valid.any()
            assert (shown[:, ~valid] == 0).all()


def test_both_crops_show_the_shared_point_and_at_least_the_promised_overlap():
    shape = (60, 70, 80)
    rng = np.random.default_rng(1)
    sampler = OverlapSampler((12, 16, 20), scale=(0.8, 1.2))
    scales = set()
    for _ in range(200):
        point = rng.random(3) * (np.asarray(shape) - 1)
        places = sampler.draw(shape, point, rng)
        starts = np.array([place.start_vox for place in places])
        reach = np.array([(np.asarray(place.size) - 1) * place.step_vox for place in places])
        assert (starts >= 0).all() and (starts + reach <= np.asarray(shape) - 1 + 1e-9).all()
        assert (starts <= point + 1e-9).all() and (starts + reach >= point - 1e-9).all()
        overlap = np.min(starts + reach, axis=0) - np.max(starts, axis=0)
        assert (overlap >= 0.5 * reach.min(axis=0) - 1e-9).all()
        scales |= {place.step_vox[0] for place in places}
    assert min(scales) < 0.85 and max(scales) > 1.15


def test_a_volume_smaller_than_the_crop_is_shown_whole_at_different_places():
    rng = np.random.default_rng(2)
    sampler = OverlapSampler((20, 20, 20), scale=(1.0, 1.0))
    places = [place for _ in range(30) for place in sampler.draw((10, 12, 14), (5, 5, 5), rng)]
    starts = np.array([place.start_vox for place in places])
    assert (starts <= 0).all() and (starts + 19 >= np.array([9, 11, 13])).all()
    assert (starts.max(axis=0) - starts.min(axis=0) > 1).all()


def test_a_crop_at_whole_voxels_without_scale_is_the_volume_itself():
    image = np.random.default_rng(3).normal(size=(2, 20, 20, 20)).astype(np.float32)
    crop = cut(image, CropPlace((3.0, -2.0, 15.0), (1.0, 1.0, 1.0), (5, 6, 8)), SPACING)
    np.testing.assert_array_equal(crop.image[:, :, 2:, :5], image[:, 3:8, 0:4, 15:20])
    assert (crop.image[:, :, :2] == 0).all() and (crop.image[:, :, :, 5:] == 0).all()
    np.testing.assert_allclose(Affine(crop.affine).points(np.array([[0.0, 0, 0]])), [[9.0, -2.0, 7.5]])


def test_the_same_seed_gives_the_same_crops():
    image = coordinate_image((20, 20, 20))
    crops = [
        overlapping_crops(image, (5, 5, 5), SPACING, OverlapSampler((8, 8, 8)), np.random.default_rng(7)) for _ in "ab"
    ]
    np.testing.assert_array_equal(crops[0][1].image, crops[1][1].image)
    assert not np.array_equal(crops[0][0].affine, crops[0][1].affine)


@pytest.mark.parametrize("arguments", [{"scale": (0, 1)}, {"scale": (1.2, 0.8)}])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=r"^" + next(iter(arguments))):
        OverlapSampler((8, 8, 8), **arguments)
