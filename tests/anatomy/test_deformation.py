"""Deformations: known displacements are found, and points move as the grid says."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator
from support.atlas_phantoms import SPACING, Phantoms

from nnunet_alice.anatomy.deformation import NO_DEFORMATION, Deformation, deform
from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry


@pytest.fixture(scope="module")
def torso() -> np.ndarray:
    """(z, y, x) of a phantom in normalised intensities."""
    return Phantoms({"p0": "torso"}).images["p0"][0]


def bent(torso: np.ndarray, amplitude_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A torso whose every point p shows what the straight one shows at p + displacement; and that displacement, mm."""
    voxels = np.indices(torso.shape).astype(float)
    waves = [np.sin(2 * np.pi * voxels[(axis + 1) % 3] / torso.shape[(axis + 1) % 3]) for axis in range(3)]
    displacement_mm = amplitude_mm * np.stack(waves)
    places = voxels + displacement_mm / np.asarray(SPACING)[:, None, None, None]
    return ndimage.map_coordinates(torso, places, order=1, mode="nearest"), displacement_mm


def bent_case(torso: np.ndarray) -> tuple[CaseGeometry, CaseGeometry, np.ndarray]:
    """A torso bent by 10 mm, the straight one as its atlas, and the displacement, mm."""
    image, truth_mm = bent(torso, 10.0)
    case, atlas = (compute_geometry(name, array[None], SPACING) for name, array in (("case", image), ("atlas", torso)))
    return case, atlas, truth_mm


def residual(found: Deformation, case: CaseGeometry, truth_mm: np.ndarray) -> float:
    """Mean distance to the true places of points in the body, as a share of how far they have to move."""
    points = case.body_points(500, np.random.default_rng(0))
    wanted = np.stack([ndimage.map_coordinates(part, points.T, order=1) for part in truth_mm], axis=-1)
    points_mm = points * SPACING
    left = np.linalg.norm(found.at(points_mm) - points_mm - wanted, axis=1)
    return left.mean() / np.linalg.norm(wanted, axis=1).mean()


def test_a_known_bend_is_found(torso):
    case, atlas, truth_mm = bent_case(torso)
    found = deform(np.eye(4), case, atlas)
    # flat organs do not tell where inside of them a point lies
    assert residual(found, case, truth_mm) < 0.5
    again = deform(np.eye(4), case, atlas)
    np.testing.assert_array_equal(again.displacement_mm, found.displacement_mm)


def test_a_bend_of_a_very_small_body_is_found_too(torso):
    """ITK's demons would stop at a change of 0.02 mm, in the first iteration."""
    case, atlas, _ = bent_case(torso)
    found = deform(np.eye(4), case, atlas)
    tiny = [replace(one, spacing=tuple(0.002 * length for length in one.spacing)) for one in (case, atlas)]
    moved_mm = deform(np.eye(4), *tiny).displacement_mm.astype(float)
    assert np.abs(moved_mm).mean() / 0.002 == pytest.approx(np.abs(found.displacement_mm.astype(float)).mean(), rel=0.2)


def test_a_bend_is_found_in_a_scan_of_different_contrast(torso):
    case, atlas, truth_mm = bent_case(torso)
    squared = replace(case, image=np.round(case.image.astype(np.float32) ** 2 / 255).astype(np.uint8))
    assert residual(deform(np.eye(4), squared, atlas), case, truth_mm) < 0.6


def test_where_edges_do_not_agree_better_nothing_moves(torso):
    case, atlas, _ = bent_case(torso)
    negative = replace(case, image=np.where(case.body, 255 - case.image, case.image))
    assert deform(np.eye(4), negative, atlas) is NO_DEFORMATION


def test_an_image_does_not_move_onto_itself(torso):
    atlas = compute_geometry("atlas", torso[None], SPACING)
    assert not deform(np.eye(4), atlas, atlas).displacement_mm.any()


def test_few_slices_are_deformed_too():
    image = np.random.default_rng(0).normal(size=(1, 3, 40, 40)).astype(np.float32)
    case, atlas = (compute_geometry(name, image * gain, (8.0, 2.0, 2.0)) for name, gain in (("a", 1), ("b", -1)))
    assert np.isfinite(deform(np.eye(4), case, atlas).displacement_mm).all()


def test_points_move_by_the_interpolated_displacement():
    rng = np.random.default_rng(0)
    field = rng.normal(size=(3, 5, 6, 7)).astype(np.float16)
    origin, step = np.array([2.0, -1.0, 0.5]), np.array([4.0, 2.0, 3.0])
    points = origin + rng.uniform(0, 1, (2, 50, 3)) * step * (np.array(field.shape[1:]) - 1)
    axes = [o + s * np.arange(n) for o, s, n in zip(origin, step, field.shape[1:], strict=True)]
    moved = Deformation(field, tuple(origin), tuple(step)).at(points)
    for component in range(3):
        naive = RegularGridInterpolator(axes, field[component].astype(float))(points)
        np.testing.assert_allclose(moved[..., component], points[..., component] + naive, atol=1e-4)
    far = Deformation(field, tuple(origin), tuple(step)).at(origin[None] - 100.0)
    np.testing.assert_allclose(far[0], origin - 100.0 + field[:, 0, 0, 0], atol=1e-3)
