"""Registration of one case to the atlas: known maps are found, wrong ones are told."""

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from support.atlas_phantoms import SPACING, Phantoms

from nnunet_alice.anatomy import registration
from nnunet_alice.anatomy.atlas import Atlas
from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry
from nnunet_alice.anatomy.registration import (
    MIN_EDGE_AGREEMENT,
    MIN_QUALITY,
    Registration,
    assess,
    edge_agreement,
    register,
)


@pytest.fixture(scope="module")
def torso() -> np.ndarray:
    """(z, y, x) of a phantom in normalised intensities."""
    return Phantoms({"p0": "torso"}).images["p0"][0]


@pytest.fixture(scope="module")
def atlas(torso) -> CaseGeometry:
    return compute_geometry("atlas", torso[None], SPACING)


def known_affine(scale, degrees: float, shift_mm) -> np.ndarray:
    """Scale, turn about the first axis, shift; about the origin, mm (z, y, x)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ np.diag(scale)
    affine[:3, 3] = shift_mm
    return affine


def deform(torso: np.ndarray, affine: np.ndarray, noise: float = 0.1) -> CaseGeometry:
    """The case that ``affine`` (case mm -> atlas mm) maps onto the torso."""
    spacing = np.asarray(SPACING)
    matrix, offset = affine[:3, :3] * spacing / spacing[:, None], affine[:3, 3] / spacing
    image = ndimage.affine_transform(torso, matrix, offset, order=1, mode="nearest")
    image += np.random.default_rng(0).normal(scale=noise, size=image.shape)
    return compute_geometry("case", image[None].astype(np.float32), SPACING)


def error_mm(found: np.ndarray, truth: np.ndarray, case: CaseGeometry) -> float:
    """Median distance of body points mapped by both."""
    points = case.body_points(500, np.random.default_rng(0)) * case.spacing
    difference = (found - truth)[:3]
    return float(np.median(np.linalg.norm(points @ difference[:, :3].T + difference[:, 3], axis=1)))


@pytest.mark.parametrize(
    ("scale", "degrees", "shift_mm"),
    [((1, 1, 1), 0, (30, -12, 9)), ((0.85, 1.1, 1.15), 6, (25, 5, -40)), ((1.1, 0.9, 0.95), -8, (-30, 30, 20))],
)
def test_known_affine_maps_are_found_to_a_fraction_of_a_cell(torso, atlas, scale, degrees, shift_mm):
    truth = known_affine(scale, degrees, shift_mm)
    case = deform(torso, truth)
    result = register(case, atlas)
    assert error_mm(result.affine, truth, case) < 0.25 * min(case.grid_spacing_mm)
    assert result.quality > 0.8


@pytest.mark.parametrize("part", [slice(0, 14), slice(12, 26), slice(24, None)])
def test_a_slab_is_found_wherever_it_lies_in_the_torso(torso, atlas, part):
    case = compute_geometry("slab", torso[None, part], SPACING)
    truth = np.eye(4)
    truth[0, 3] = (part.start or 0) * SPACING[0]
    result = register(case, atlas)
    assert error_mm(result.affine, truth, case) < 0.5 * min(case.grid_spacing_mm)


@pytest.mark.parametrize(("part", "scale"), [(slice(None), (1, 1, 1)), (slice(3, 20), (1, 1.2, 0.85))])
def test_the_best_shift_is_the_one_that_itk_finds(torso, atlas, part, scale):
    """Fields of view, and so the two rough grids, of different sizes; ITK's own filter as the reference."""
    case = compute_geometry("case", np.ascontiguousarray(torso[None, part, 4:, :-6]), SPACING)
    scale = np.array(scale, float)
    largest_mm = np.maximum(np.array(case.shape) * SPACING * scale, np.array(atlas.shape) * SPACING)
    cell_mm = (np.prod(largest_mm) / registration._SHIFT_CELLS) ** (1 / 3)
    grids = [registration._rough(case, scale, cell_mm), registration._rough(atlas, np.ones(3), cell_mm)]
    search = sitk.MaskedFFTNormalizedCorrelationImageFilter()
    search.SetRequiredFractionOfOverlappingPixels(registration._MIN_SHIFT_OVERLAP)
    images = [sitk.GetImageFromArray(grid) for grid in (*grids, *map(np.ones_like, grids))]
    correlation = sitk.GetArrayFromImage(search.Execute(*images))
    # The first element is the shift at which only the last cell of the atlas lies on the first of the case.
    peak = np.array(np.unravel_index(correlation.argmax(), correlation.shape)) - (np.array(grids[1].shape) - 1)
    assert grids[0].shape != grids[1].shape and np.any(peak != 0)
    found = registration._best_shift(case, atlas, scale)
    np.testing.assert_array_equal(np.diag(found), [*scale, 1])
    corner_mm = (scale - 1) * SPACING / 2
    np.testing.assert_allclose((corner_mm - found[:3, 3]) / cell_mm, peak, atol=1e-5)


@pytest.mark.slow
def test_registration_is_repeatable_to_the_bit(torso, atlas):
    case = deform(torso, known_affine((0.95, 1, 1.05), 4, (5, 5, 5)))
    np.testing.assert_array_equal(register(case, atlas).affine, register(case, atlas).affine)


@pytest.mark.slow
def test_anatomy_upside_down_and_noise_score_as_poor(torso, atlas):
    upside_down = compute_geometry("case", np.ascontiguousarray(torso[None, ::-1]), SPACING)
    noise = np.random.default_rng(0).normal(size=torso.shape).astype(np.float32)
    assert register(upside_down, atlas).quality < MIN_QUALITY
    assert register(compute_geometry("noise", noise[None], SPACING), atlas).quality < MIN_QUALITY


@pytest.mark.slow
def test_a_real_chest_upside_down_is_poor_though_its_lungs_lie_well(real_data):
    paths = [real_data / "Dataset061_ChestCT" / "imagesTr" / f"chest_{number}_0000.nii.gz" for number in (27, 10)]
    volumes = [sitk.Shrink(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"), [2] * 3) for path in paths]
    images = [sitk.GetArrayFromImage(volume).astype(np.float32) for volume in volumes]
    first, second, turned = (
        compute_geometry(name, np.ascontiguousarray(image)[None], volumes[number].GetSpacing()[::-1])
        for name, image, number in (("first", images[0], 0), ("second", images[1], 1), ("turned", images[1][::-1], 1))
    )
    atlas = Atlas(first)
    assert atlas.register(second).problem == ""
    found = atlas.register(turned)
    assert found.quality > MIN_QUALITY and found.edges < MIN_EDGE_AGREEMENT and "upside down" in found.problem


def test_edges_agree_where_images_do_and_less_where_they_are_shifted(atlas):
    assert edge_agreement(np.eye(4), atlas, atlas) == pytest.approx(1)
    shifted = np.eye(4)
    shifted[0, 3] = 40.0
    assert edge_agreement(shifted, atlas, atlas) < 0.6
    shifted[0, 3] = 1e5
    assert edge_agreement(shifted, atlas, atlas) == 0


def test_the_truth_assesses_as_perfect_and_shifts_as_worse(atlas):
    perfect = assess(np.eye(4), atlas, atlas)
    assert perfect.correlation == pytest.approx(1)
    assert perfect.overlap == pytest.approx(1)
    shifted = np.eye(4)
    shifted[0, 3] = 40.0
    assert assess(shifted, atlas, atlas).quality < 0.8 * perfect.quality
    shifted[0, 3] = 1e5
    assert assess(shifted, atlas, atlas).quality == 0


def test_overlap_is_the_share_of_the_smaller_body():
    def box(size: int) -> CaseGeometry:
        body = np.zeros((20, 20, 20), bool)
        body[:size, :10, :10] = True
        image = np.random.default_rng(0).integers(0, 255, body.shape).astype(np.uint8)
        return CaseGeometry("box", body.shape, (2.0, 2.0, 2.0), (1, 1, 1), body.shape, image, np.packbits(body))

    case, atlas = box(8), box(16)
    assert assess(np.eye(4), case, atlas).overlap == pytest.approx(1)
    moved = np.eye(4)
    moved[0, 3] = 2.0 * 12  # cells 0-7 of the case land on 12-19, of which 12-15 are body
    assert assess(moved, case, atlas).overlap == pytest.approx(0.5)
    # The other way round, at half the length: the body of the larger box shrinks to that of the smaller, up to a cell.
    halved = np.diag([0.5, 1, 1, 1])
    assert assess(halved, atlas, case).overlap == pytest.approx(1, abs=1 / 16)


def test_implausible_maps_have_no_quality():
    fine = Registration(np.diag([1.2, 1, 0.9, 1]), 0.9, 0.8)
    assert fine.quality == pytest.approx(0.72)
    assert dataclasses.replace(fine, correlation=-0.5).quality == 0
    assert dataclasses.replace(fine, affine=np.diag([2.5, 1, 1, 1])).quality == 0
    assert dataclasses.replace(fine, affine=np.diag([0.3, 1, 1, 1])).quality == 0
    assert dataclasses.replace(fine, affine=np.diag([-1.0, 1, 1, 1])).quality == 0
    assert dataclasses.replace(fine, affine=np.diag([0.0, 1, 1, 1])).quality == 0


@pytest.mark.parametrize("unit", [1e-3, 10.0])
def test_no_length_is_human(atlas, torso, unit):
    """The same volumes in voxels of another size: the same map, its shift in that unit."""
    truth = known_affine((1.05, 0.95, 1.0), 4, (12.0, -9.0, 15.0))
    case = deform(torso, truth)
    scaled = [dataclasses.replace(one, spacing=tuple(unit * np.asarray(one.spacing))) for one in (case, atlas)]
    found = register(*scaled).affine.copy()
    found[:3, 3] /= unit
    assert error_mm(found, truth, case) < 0.5 * SPACING[0]
