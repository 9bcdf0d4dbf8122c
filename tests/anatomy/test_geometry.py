"""Case geometry: coarse grids, body points and their storage."""

import os
import zipfile

import blosc2
import numpy as np
import pytest
from support.refused import refused
from support.small_datasets import ball, geometry_of, replace_image, write_preprocessed

from nnunet_alice.anatomy.geometry import (
    CaseGeometry,
    block_mean,
    compute_geometry,
    geometry_file,
    grid_factors,
    load_geometry,
)
from nnunet_alice.errors import InputError

SPACING = (4.0, 1.0, 1.5)


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 3, 4), (5, 2, 1), (7, 11, 9)])
def test_block_mean_is_the_mean_of_each_block_also_of_chunked_arrays_and_at_the_far_border(factors):
    image = np.random.default_rng(0).normal(size=(2, 7, 11, 9)).astype(np.float32)
    expected = np.zeros((2, *[-(-n // f) for n, f in zip(image.shape[1:], factors, strict=True)]))
    for index in np.ndindex(expected.shape):
        block = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index[1:], factors, strict=True))
        expected[index] = image[(index[0], *block)].mean()
    np.testing.assert_allclose(block_mean(image, factors), expected, atol=1e-6)
    chunked = blosc2.asarray(image, chunks=(1, 3, 11, 9), blocks=(1, 3, 4, 4))
    np.testing.assert_allclose(block_mean(chunked, factors), expected, atol=1e-6)


def test_block_mean_never_reads_a_whole_channel():
    class Watched:
        shape, chunks = (1, 64, 8, 8), (1, 8, 8, 8)
        largest = 0

        def __getitem__(self, key):
            part = np.zeros(self.shape)[key]
            self.largest = max(self.largest, part.size)
            return part

    image = Watched()
    block_mean(image, (4, 2, 2))
    assert image.largest <= 8 * 8 * 8


def test_grid_keeps_small_volumes_and_makes_about_cubic_cells_of_large_ones():
    assert grid_factors((35, 50, 35), (1, 1, 1)) == (1, 1, 1)
    shape, spacing = (200, 512, 512), (2.5, 0.8, 0.8)
    factors = grid_factors(shape, spacing)
    cells_mm = np.multiply(factors, spacing)
    assert cells_mm.max() / cells_mm.min() < 1.3
    assert 80**3 / 3 < np.prod(np.divide(shape, factors)) < 80**3 * 3


def test_geometry_of_a_ball_finds_it():
    geometry = compute_geometry("ball", ball((16, 60, 40), SPACING, 20), SPACING)
    expected_mm3 = 4 / 3 * np.pi * 20**3
    assert geometry.body_cells * np.prod(geometry.grid_spacing_mm) == pytest.approx(expected_mm3, rel=0.15)
    assert geometry.shape == (16, 60, 40) and geometry.image.shape == geometry.grid_shape


def test_gain_and_offset_of_the_scanner_do_not_change_the_coarse_image():
    image = ball((16, 60, 40), SPACING, 20)
    one, other = (compute_geometry("ball", changed, SPACING) for changed in (image, 3e4 * image + 5e4))
    assert np.abs(one.image.astype(int) - other.image).max() <= 1


@pytest.mark.parametrize(("air", "tissue"), [(-1000, 40), (0, 1), (0, 1e-6), (0, 1e9)])
def test_a_body_of_one_value_has_a_coarse_image_without_overflow(air, tissue):
    image = np.full((1, 24, 24, 24), air, np.float32)
    image[0, 6:18, 6:18, 6:18] = tissue
    with np.errstate(all="raise"):
        geometry = compute_geometry("c", image, (2.0, 2.0, 2.0))
    assert geometry.body.sum() > 0 and not geometry.image[geometry.body].any()


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.full((1, 8, 8, 8), np.nan, np.float32), "NaN"),
        (np.zeros((1, 8, 8, 8), np.float32), None),
        (np.zeros((1, 8, 8), np.float32), (1, 8, 8)),
    ],
)
def test_unusable_images_are_refused_by_name(image, found):
    with refused(InputError, case="bad", value=found):
        compute_geometry("bad", image, (1.0, 1.0, 1.0))


def test_body_points_are_uniform_over_the_body_also_in_cells_cut_by_the_border():
    body = np.zeros((2, 2, 3), dtype=bool)
    body[0, 0, 0] = body[1, 1, 1] = body[0, 1, 2] = True
    # Cells of 4 x 4 x 4 voxels, the last one of x cut to 1 voxel: volumes 64, 64 and 16.
    geometry = geometry_of(body, (4, 4, 4), (8, 8, 9))
    points = geometry.body_points(30_000, np.random.default_rng(0))
    assert points.shape == (30_000, 3)
    assert (points >= 0).all() and (points <= np.array([7, 7, 8])).all()
    cells = np.floor((points + 0.5) / 4).astype(int)
    shares = [np.mean((cells == cell).all(axis=1)) for cell in ((0, 0, 0), (1, 1, 1), (0, 1, 2))]
    np.testing.assert_allclose(shares, np.array([64, 64, 16]) / 144, atol=0.01)
    # Within a cell away from the border too: voxel 4 to 7 of each axis a quarter each.
    inner = points[(cells == 1).all(axis=1)]
    counts = np.histogram(inner[:, 1], bins=[3.5, 4.5, 5.5, 6.5, 7.5])[0] / len(inner)
    np.testing.assert_allclose(counts, 0.25, atol=0.02)


def test_body_points_follow_their_generator():
    geometry = geometry_of(np.ones((3, 3, 3), bool), (2, 2, 2))
    one, same, other = (geometry.body_points(5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("tolerance", [0, 1, 2])
def test_in_body_equals_a_loop_over_cells(tolerance):
    rng = np.random.default_rng(3)
    body = rng.random((5, 6, 7)) < 0.03
    geometry = geometry_of(body, (2, 3, 1), (10, 17, 7))
    points = rng.uniform(-2, np.add(geometry.shape, 1), (500, 3))
    expected = []
    for point in points:
        inside = all(-0.5 <= p <= n - 0.5 for p, n in zip(point, geometry.shape, strict=True))
        cell = np.floor((point + 0.5) / geometry.factors)
        expected.append(inside and any(np.abs(cell - b).max() <= tolerance for b in np.argwhere(body)))
    assert 0 < sum(expected) < 500
    np.testing.assert_array_equal(geometry.in_body(points, tolerance), expected)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return write_preprocessed(tmp_path, {"a": ball((16, 60, 40), SPACING, 20)}, SPACING)


def assert_same(one: CaseGeometry, other: CaseGeometry) -> None:
    for name in ("case", "shape", "spacing", "factors", "grid_shape"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.body, other.body)


def test_geometry_is_computed_once_and_read_back_whole(dataset, monkeypatch):
    first = load_geometry(dataset, "a")
    monkeypatch.setattr("nnunet_alice.anatomy.geometry.compute_geometry", lambda *_: pytest.fail("computed again"))
    assert_same(load_geometry(dataset, "a"), first)


@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "older version", "other spacing"])
def test_damaged_or_stale_geometry_is_computed_again(dataset, damage):
    first = load_geometry(dataset, "a")
    path = geometry_file(dataset, "a")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "header":
        _garble_headers(path)
    else:
        content = dict(np.load(path))
        content |= {"version": 0} if damage == "older version" else {"spacing": (1.0, 1.0, 1.0)}
        np.savez(path, **content | {"image": np.zeros(1)})
    assert_same(load_geometry(dataset, "a"), first)
    assert_same(load_geometry(dataset, "a"), first)


def _garble_headers(path) -> None:
    """Arrays whose headers are no Python any more, in a file that is whole otherwise."""
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name).replace(b"{'descr'", b"{'desc\x00'") for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in content.items():
            file.writestr(name, data)


def test_a_geometry_goes_with_its_image_also_where_the_shape_stays(dataset):
    first = load_geometry(dataset, "a")
    flipped = np.roll(dataset.image("a")[...], 12, axis=2)
    replace_image(dataset, "a", flipped)
    expected = compute_geometry("a", flipped, SPACING)
    assert (expected.body != first.body).any()
    assert_same(load_geometry(dataset, "a"), expected)


def test_a_geometry_outlives_a_copy_of_its_dataset(dataset, monkeypatch):
    first = load_geometry(dataset, "a")
    path = dataset.folder / "a.b2nd"
    os.utime(path, (1, 1))
    monkeypatch.setattr("nnunet_alice.anatomy.geometry.compute_geometry", lambda *_: pytest.fail("computed again"))
    assert_same(load_geometry(dataset, "a"), first)


def test_an_image_that_cannot_be_opened_leaves_the_geometry(dataset):
    first = load_geometry(dataset, "a")
    (dataset.folder / "a.b2nd").write_bytes(b"half an image")
    assert_same(load_geometry(dataset, "a"), first)


def test_labels_play_no_part(dataset, tmp_path, monkeypatch):
    without = load_geometry(dataset, "a")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "other"))
    image = ball((16, 60, 40), SPACING, 20)
    labelled = write_preprocessed(tmp_path / "other", {"a": image}, SPACING, {"a": np.ones(image.shape)})
    assert_same(load_geometry(labelled, "a"), without)


def test_the_axial_axis_follows_the_transposition_of_the_plans(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    dataset = write_preprocessed(tmp_path, {"a": ball((16, 30, 20), SPACING, 15)}, SPACING, transpose_forward=(1, 2, 0))
    seen = []

    def watch(image, spacing, *, axial_axis):
        seen.append(axial_axis)
        return np.ones(image.shape[1:], bool)

    monkeypatch.setattr("nnunet_alice.anatomy.geometry.body_mask", watch)
    load_geometry(dataset, "a")
    assert seen == [2]


@pytest.mark.parametrize("first", [(0, 0, 0), (-3, 4, -9), (5, -2, 6), (40, 0, 0), (0, -30, 0)])
def test_the_body_in_a_crop_is_what_every_voxel_says(first):
    factors, shape, size = (2, 3, 1), (11, 13, 7), (9, 8, 20)  # the last cells stick out
    geometry = geometry_of(np.random.default_rng(1).random((6, 5, 7)) < 0.6, factors, shape)
    crop = geometry.body_crop(np.array(first), size)
    for index in np.ndindex(size):
        voxel = np.add(first, index)
        inside = bool(np.all(voxel >= 0) and np.all(voxel < shape))
        assert crop[index] == (inside and geometry.body[tuple(voxel // factors)])
