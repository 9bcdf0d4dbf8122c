"""Landmarks on an atlas and in cases, against loops and known truth."""

import numpy as np
import pytest
from support.refused import refused

from nnunet_alice.anatomy.landmarks import Landmarks, lay_landmarks, standard_lengths, to_locations
from nnunet_alice.errors import InputError, MissingFileError


def ellipsoid(shape, centre, radii):
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1


@pytest.fixture(scope="module")
def lungs():
    """Two lungs of about six litres together, 2 mm voxels."""
    shape = (150, 140, 180)
    return ellipsoid(shape, (75, 70, 50), (62, 47, 30)) | ellipsoid(shape, (75, 70, 129), (62, 47, 30))


@pytest.fixture(scope="module")
def landmarks(lungs):
    return lay_landmarks(lungs, (2, 2, 2))


def random_affine(rng):
    """Case mm -> atlas mm: rotation by up to 20 degrees about each axis, scales, shear, shift."""
    affine = np.eye(4)
    for axis in range(3):
        angle, (i, j) = rng.uniform(-0.35, 0.35), [a for a in range(3) if a != axis]
        turn = np.eye(4)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        affine = affine @ turn
    affine[:3, :3] *= rng.uniform(0.8, 1.2, (1, 3))
    affine[:3, :3] += rng.uniform(-0.05, 0.05, (3, 3))
    affine[:3, 3] = rng.uniform(-30, 30, 3)
    return affine


def test_lungs_get_about_as_many_landmarks_as_in_the_paper(landmarks, lungs):
    assert 400 < len(landmarks) < 800
    assert np.abs(landmarks.locations).max() < 1
    # Symmetric lungs, symmetric landmarks, but for the rounding of the grid to voxels.
    left, right = (landmarks.points_mm[:, 2] < 179).sum(), (landmarks.points_mm[:, 2] > 179).sum()
    assert abs(left - right) < 0.05 * len(landmarks)
    columns = np.unique(landmarks.points_mm[:, 2])
    np.testing.assert_allclose(358 - columns[::-1], columns, atol=2)


@pytest.mark.parametrize(("unit", "human"), [(1.0, True), (0.4, True), (1e-3, False), (0.02, False), (60.0, False)])
def test_standard_lengths_are_the_papers_for_people_and_in_proportion_for_all_else(lungs, unit, human):
    spacing = np.full(3, 2.0) * unit
    patch_mm, step_mm = standard_lengths(lungs, spacing)
    if human:
        assert (patch_mm, step_mm) == (32, 26)
    else:
        volume_mm3 = lungs.sum() * np.prod(spacing)
        assert volume_mm3 / patch_mm**3 == pytest.approx((260 / 32) ** 3, rel=0.2)
        assert patch_mm / step_mm == pytest.approx(32 / 26, rel=0.05)
    assert 30 < len(lay_landmarks(lungs, spacing, patch_mm, step_mm)) < 3000


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1.5, 1), (2.5, 0.8, 0.8)])
def test_patches_are_kept_by_their_share_of_the_region(spacing):
    rng = np.random.default_rng(0)
    region = ellipsoid((30, 50, 60), (14, 20, 30), (9, 18, 25)) & (rng.random((30, 50, 60)) < 0.5)
    patch_mm, step_mm = 12.0, 8.0
    result = lay_landmarks(region, spacing, patch_mm, step_mm, min_share=0.15)
    size = np.maximum(1, np.round(patch_mm / np.array(spacing))).astype(int)
    padded = np.pad(region, [(n, n) for n in size])
    kept = {tuple(np.round(point / spacing - (size - 1) / 2).astype(int)) for point in result.points_mm}
    assert len(kept) == len(result)
    # All corners of the grid, from the kept ones and one step further: a kept patch has enough, no other has.
    axes = [sorted({corner[axis] for corner in kept}) for axis in range(3)]
    seen = {True: 0, False: 0}
    for corner in np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3):
        start = corner + size
        share = padded[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))].mean()
        assert (tuple(corner) in kept) == (share > 0.15)
        seen[tuple(corner) in kept] += 1
    assert min(seen.values()) > 5
    for axis, step in enumerate(step_mm / np.array(spacing)):
        assert np.abs(np.diff(axes[axis]) - step).max() <= 1


def test_the_grid_covers_the_region():
    region = np.zeros((60, 60, 60), dtype=bool)
    region[7:45, 3:58, 20:31] = True
    result = lay_landmarks(region, (1, 1, 1), patch_mm=12, step_mm=10, min_share=0.0)
    covered = np.zeros_like(region)
    for point in result.points_mm:
        low = np.round(point - 5.5).astype(int)
        covered[tuple(slice(max(0, a), a + 12) for a in low)] = True
    assert covered[region].all()


def test_locations_span_the_atlas():
    shape, spacing = (10, 20, 40), (3.0, 2.0, 1.0)
    border = np.array([[-0.5, -0.5, -0.5], [9.5, 19.5, 39.5], [4.5, 9.5, 19.5]]) * spacing
    np.testing.assert_allclose(to_locations(border, shape, spacing), [[-1] * 3, [1] * 3, [0] * 3], atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_neighbours_are_the_nearest(landmarks, k):
    """No landmark that is left out is nearer by more than a fifth than one that is taken."""
    neighbours, points = landmarks.neighbours(k), landmarks.points_mm
    assert neighbours.tolist() == landmarks.neighbours(k).tolist()
    for number, chosen in enumerate(neighbours):
        distance = np.linalg.norm(points - points[number], axis=1)
        others = np.setdiff1d(np.arange(len(points)), [number, *chosen])
        assert number not in chosen and len(set(chosen.tolist())) == k
        assert distance[others].min() >= distance[chosen].max() / 1.2


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 3, 3), (2.5, 0.8, 0.8)])
def test_neighbours_lie_on_all_sides_alike(spacing):
    """Six at one step, up to rounding to voxels: each direction gets its share (the reference: 13 to 19 %)."""
    shape = tuple(int(200 / s) for s in spacing)
    landmarks = lay_landmarks(np.ones(shape), spacing, patch_mm=32, step_mm=26)
    points = landmarks.points_mm
    inner = ((points > points.min(axis=0)) & (points < points.max(axis=0))).all(axis=1)
    steps = (points[landmarks.neighbours(2)] - points[:, None])[inner].reshape(-1, 3)
    axis = np.abs(steps).argmax(axis=1)
    direction = 2 * axis + (steps[np.arange(len(steps)), axis] > 0)
    share = np.bincount(direction, minlength=6) / len(direction)
    assert len(direction) > 200 and share.min() > 0.1 and share.max() < 0.24


@pytest.mark.parametrize("seed", range(5))
def test_landmarks_map_into_a_case_and_back_within_a_voxel(landmarks, seed):
    rng = np.random.default_rng(seed)
    affine, shape, spacing = random_affine(rng), (120, 160, 160), (2.5, 1.5, 1.5)
    found = landmarks.in_case(affine, shape, spacing)
    assert 0 < len(found.landmarks) < len(landmarks)
    # To whole voxels, as a crop is, and back.
    case_mm = np.round(found.points_vox) * spacing
    back = np.concatenate([case_mm, np.ones((len(case_mm), 1))], axis=1) @ affine.T
    error = back[:, :3] - landmarks.points_mm[found.landmarks]
    voxel_mm = np.abs(affine[:3, :3] * spacing).sum(axis=1)
    assert (np.abs(error) <= voxel_mm / 2 + 1e-9).all()
    # Dropped ones are outside, kept ones inside.
    inverse = np.linalg.inv(affine)
    for number, point in enumerate(landmarks.points_mm):
        vox = (inverse @ [*point, 1])[:3] / spacing
        assert (number in found.landmarks) == bool(((vox >= -0.5) & (vox <= np.array(shape) - 0.5)).all())


def test_a_case_shows_the_landmarks_in_its_array(landmarks):
    whole = landmarks.in_case(np.eye(4), landmarks.atlas_shape, landmarks.atlas_spacing)
    half = landmarks.in_case(np.eye(4), (75, 140, 180), (2, 2, 2))
    np.testing.assert_allclose(whole.points_vox, landmarks.points_mm / 2)
    assert len(whole.landmarks) == len(landmarks)
    assert half.landmarks.tolist() == np.flatnonzero(landmarks.points_mm[:, 0] <= 74.5 * 2).tolist()
    assert 0 < len(half.landmarks) < len(landmarks)


def test_save_and_load(landmarks, tmp_path):
    path = tmp_path / "landmarks.json"
    landmarks.save(path)
    loaded = Landmarks.load(path)
    np.testing.assert_array_equal(loaded.points_mm, landmarks.points_mm)
    np.testing.assert_array_equal(loaded.locations, landmarks.locations)
    for name in ("atlas_shape", "atlas_spacing", "patch_mm", "step_mm"):
        assert getattr(loaded, name) == getattr(landmarks, name)


def test_bad_input(landmarks, lungs, tmp_path):
    with refused(InputError, value=(5, 5, 5)):
        lay_landmarks(np.zeros((5, 5, 5)), (1, 1, 1))
    with refused(InputError, option="step", value=0):
        lay_landmarks(lungs, (2, 2, 2), step_mm=0)
    speck = np.zeros((50, 50, 50))
    speck[25, 25, 25] = 1
    with refused(InputError, option="patch"):
        lay_landmarks(speck, (1, 1, 1))
    with refused(InputError, option="step", value=len(landmarks)):
        landmarks.neighbours(len(landmarks))
    with refused(InputError, value=None):
        landmarks.in_case(np.diag([1, 1, 0, 1]), (5, 5, 5), (1, 1, 1))
    with refused(InputError, value=np.eye(3).tolist()):
        landmarks.in_case(np.eye(3), (5, 5, 5), (1, 1, 1))
    with refused(MissingFileError, path="none.json"):
        Landmarks.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"version": 1}')
    with refused(InputError, path="other.json"):
        Landmarks.load(tmp_path / "other.json")
