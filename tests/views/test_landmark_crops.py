"""Landmark crops: the right anatomy of the right subjects, augmented within limits, repeatable."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.errors import InputError
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.views.landmark_crops import (
    AffineRange,
    LandmarkCrops,
    apply_affine_to_crops,
    crop_size,
    crop_with_border,
    draw_affine,
    noise_and_gamma,
)

SPACING = (4.0, 2.0, 2.0)
SHAPES = {"a": (20, 40, 40), "b": (24, 36, 40), "c": (20, 40, 44), "short": (8, 40, 40)}


@pytest.fixture
def world():
    """Cases in mm = atlas mm but for a shift; voxels hold (case, z, y, x), so that a crop says where it is from."""
    grid = np.stack(np.meshgrid([16, 48, 64], [24, 52], [20, 44, 60], indexing="ij"), axis=-1).reshape(-1, 3)
    landmarks = Landmarks(grid.astype(float), (20, 40, 40), SPACING, 16.0, 24.0)
    affines = []
    for number in range(len(SHAPES)):
        affine = np.eye(4)
        affine[:3, 3] = (0, 2.0 * number, -2.0 * number)
        affines.append(affine)
    places = LandmarkPlaces(landmarks, list(SHAPES), affines, SHAPES.values(), SPACING)

    def image(case):
        axes = np.meshgrid(*map(np.arange, SHAPES[case]), indexing="ij")
        return np.stack([np.full(SHAPES[case], list(SHAPES).index(case)), *axes]).astype(np.float32)

    return SimpleNamespace(places=places, landmarks=landmarks, affines=affines, image=image)


def crops(world, cases=tuple(SHAPES), **settings):
    settings = {"affine": None, "neighbours": 2, "batch_size": 8} | settings
    batch_size = settings.pop("batch_size")
    return LandmarkCrops(world.places, cases, world.image, (4, 8, 8), SPACING, batch_size, **settings)


def test_crops_show_the_landmark_and_its_neighbours_in_every_subject(world):
    make = crops(world)
    nearest = world.landmarks.neighbours(2)
    for number in range(len(make.landmarks)):
        batch = make(number, np.random.default_rng(number))
        landmark, count = batch.landmark, len(batch.cases)
        assert batch.views.shape == (4 * count, 4, 4, 8, 8) and batch.views.dtype == torch.float32
        patches = batch.views.unflatten(0, (4, count))
        assert torch.equal(patches[0], patches[1])  # two views of the same patch, here not augmented
        for row, place in ((0, landmark), (2, nearest[landmark][0]), (3, nearest[landmark][1])):
            for column, case in enumerate(batch.cases):
                subject = list(SHAPES).index(case)
                point_mm = world.landmarks.points_mm[place] - world.affines[subject][:3, 3]
                middle = patches[row, column, :, 2, 4, 4].numpy()
                assert middle[0] == subject == batch.subjects[column]
                np.testing.assert_array_equal(middle[1:], np.floor(point_mm / SPACING + 0.5))
        np.testing.assert_array_equal(batch.location, world.landmarks.locations[landmark])
        np.testing.assert_array_equal(batch.neighbour_locations, world.landmarks.locations[nearest[landmark]])


def test_subjects_are_those_that_show_landmark_and_neighbours(world):
    make = crops(world)
    nearest = world.landmarks.neighbours(2)
    high = set()
    for number in range(len(make.landmarks)):
        batch = make(number, np.random.default_rng(0))
        involved = [batch.landmark, *nearest[batch.landmark]]
        expected = {
            case
            for number, case in enumerate(SHAPES)
            if all(
                world.landmarks.in_case(world.affines[number], SHAPES[case], SPACING).landmarks.tolist().count(place)
                for place in involved
            )
        }
        assert sorted(batch.cases) == sorted(expected)
        high.add("short" in expected)
    assert high == {True, False}
    assert set(crops(world, cases=["a", "b", "unknown"])(0, np.random.default_rng(0)).cases) == {"a", "b"}


def test_batches_are_not_larger_than_asked_and_repeat_nobody(world):
    for seed in range(10):
        cases = crops(world, batch_size=2)(seed, np.random.default_rng(seed)).cases
        assert len(cases) == 2 == len(set(cases))


def test_every_landmark_is_visited_once_a_round_in_another_order(world):
    make = crops(world)
    count = len(make.landmarks)
    rounds = [[make.landmark_of(first + number) for number in range(count)] for first in (0, count)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == make.landmarks.tolist() and rounds[0] != rounds[1]
    other = [crops(world, seed=1).landmark_of(number) for number in range(count)]
    assert other != rounds[0]


def test_a_batch_depends_on_number_and_generator_alone(world):
    make = crops(world, affine=AffineRange(), transform=noise_and_gamma(1.0))
    one = make(3, np.random.default_rng([1, 2]))
    make(4, np.random.default_rng(9))
    torch.rand(3)
    two = make(3, np.random.default_rng([1, 2]))
    assert torch.equal(one.views, two.views) and one.cases == two.cases
    assert not torch.equal(one.views, make(3, np.random.default_rng([1, 3])).views)
    views = one.views.unflatten(0, (4, -1))
    assert not torch.equal(views[0], views[1])  # each view is augmented on its own


def test_too_few_cases_or_landmarks_get_one_sentence(world):
    with pytest.raises(InputError, match=r"None of the 18 landmarks is shown.*--roi"):
        crops(world, cases=["a"])
    crops(world, cases=["a"], min_cases=1)
    with pytest.raises(InputError, match="18 neighbours were asked for"):
        crops(world, neighbours=18)


def test_border_is_repeated_beyond_the_volume():
    image = np.random.default_rng(0).normal(size=(2, 6, 7, 5)).astype(np.float32)
    padded = np.pad(image, [(0, 0)] + [(20, 20)] * 3, mode="edge")
    for centre in ((3, 3, 2), (0, 0, 0), (5.4, -0.5, 4.4), (-9, 3, 14), (2.5, 12, 1.5)):
        for size in ((4, 4, 4), (8, 9, 3), (3, 12, 12)):
            lower = np.floor(np.asarray(centre) + 0.5).astype(int) - np.asarray(size) // 2 + 20
            expected = padded[(slice(None), *(slice(a, a + n) for a, n in zip(lower, size, strict=True)))]
            np.testing.assert_array_equal(crop_with_border(image, centre, size), expected)


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
    scale = np.cbrt(np.linalg.det(in_mm))
    assert 0.9 <= scale.min() < 0.92 and 1.08 < scale.max() <= 1.1
    rotation = in_mm / scale[:, None, None]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (300, 3, 3)), atol=1e-9
    )
    angle = np.degrees(np.arccos((np.trace(rotation, axis1=1, axis2=2) - 1) / 2))
    assert 10 < angle.max() < 10 * np.sqrt(3) + 1


def test_noise_and_gamma_come_a_quarter_of_the_time():
    view = np.random.default_rng(0).normal(size=(1, 6, 6, 6)).astype(np.float32)
    from nnunet_alice.views.augmentation import augment

    rng = np.random.default_rng(1)
    same = np.mean([np.array_equal(augment(view.copy(), noise_and_gamma(), rng).numpy(), view) for _ in range(400)])
    assert abs(same - 0.75**2) < 0.08


@pytest.mark.parametrize(
    ("patch_mm", "spacing", "strides", "largest", "expected"),
    [
        (32, (1, 1, 1), (32, 32, 32), (128, 128, 128), (64, 64, 64)),  # two voxels at the bottleneck
        (100, (1, 1, 1), (32, 32, 32), (128, 128, 128), (128, 128, 128)),
        (500, (1, 1, 1), (32, 32, 32), (128, 128, 100), (128, 128, 96)),
        (32, (5, 0.8, 0.8), (4, 32, 32), (20, 256, 256), (8, 64, 64)),
        (32, (1, 1, 1), (16, 16, 16), (16, 16, 16), (32, 32, 32)),  # plans that keep one voxel
    ],
)
def test_crop_size(patch_mm, spacing, strides, largest, expected):
    assert crop_size(patch_mm, spacing, strides, largest) == expected
