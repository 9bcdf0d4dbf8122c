"""Lungs on CT: against the truth of phantoms and thresholds on real chests, never gas elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from support.refused import refused

from nnunet_alice.anatomy.atlas import Atlas
from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.lungs import lung_geometry, lung_mask
from nnunet_alice.anatomy.registration import MIN_QUALITY
from nnunet_alice.errors import InputError
from nnunet_alice.phantoms import LABELS, make_subject, render

SPACING = (6.0, 6.0, 6.0)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice."""
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture(scope="module")
def torso():
    """A phantom's volume in HU and which voxels are lung; the gas in its stomach and colon is as dark."""
    phantom = render(make_subject(3, field_of_view="torso"), SPACING)
    lungs = np.isin(phantom.labels, [LABELS["lung_right"], LABELS["lung_left"]])
    return phantom.image, lungs


def test_lungs_of_a_phantom(torso):
    image, lungs = torso
    found = lung_mask(image, SPACING)
    assert overlap(found, lungs) > 0.9
    below = np.flatnonzero(lungs.any(axis=(1, 2)))[0]  # slices count from the feet
    assert (image[:below] < -700).sum() > 50 and not found[: below - 2].any()


@pytest.mark.parametrize("scale", [(1 / 400, 1.5), (0.06, 60.0), (20.0, -3000.0)])
def test_any_scale_will_do(torso, scale):
    image, lungs = torso
    assert overlap(lung_mask(image * scale[0] + scale[1], SPACING), lungs) > 0.9


def test_any_axis_may_run_along_the_body_and_fine_voxels_are_thinned(torso):
    image, lungs = torso
    turned = lung_mask(np.moveaxis(image, 0, 2), SPACING, axial_axis=2)
    assert overlap(np.moveaxis(turned, 2, 0), lungs) > 0.9
    fine = image.repeat(3, axis=0).repeat(2, axis=2)[:-1]
    found = lung_mask(fine, (2.0, 6.0, 3.0))
    assert found.shape == fine.shape and overlap(found, lungs.repeat(3, axis=0).repeat(2, axis=2)[:-1]) > 0.9


def test_images_without_lungs_are_refused(torso):
    image, lungs = torso
    below = np.flatnonzero(lungs.any(axis=(1, 2)))[0]
    with refused(InputError, case=None, value="0.06"):
        lung_mask(image[: below - 2], SPACING)


def test_registration_by_lungs_brings_lungs_together():
    """Whatever the rest of the body looks like: here it is hidden on one side."""
    phantoms = [render(make_subject(number, field_of_view="chest"), SPACING) for number in (1, 2)]
    geometries = [
        replace(compute_geometry(str(number), phantom.image[None], SPACING)) for number, phantom in enumerate(phantoms)
    ]
    found = Atlas(geometries[1], "lungs").register(geometries[0])
    assert found.quality > MIN_QUALITY
    masks = [np.isin(phantom.labels, [LABELS["lung_right"], LABELS["lung_left"]]) for phantom in phantoms]
    moved = ndimage.affine_transform(
        masks[1].astype(float), found.affine[:3, :3], found.affine[:3, 3] / SPACING, masks[0].shape, order=1
    )
    assert overlap(moved > 0.5, masks[0]) > 0.88
    with refused(InputError, case="0", value="0.00"):
        lung_geometry(replace(geometries[0], image=np.full_like(geometries[0].image, 90)))


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 4, 17, 26])
def test_real_chests(number, real_data):
    """A table below the patient (4), coarse grey levels (3, 17), lungs that touch (4, 26)."""
    volume = sitk.ReadImage(str(real_data / "Dataset061_ChestCT" / "imagesTr" / f"chest_{number:02d}_0000.nii.gz"))
    image, spacing = sitk.GetArrayFromImage(volume), volume.GetSpacing()[::-1]
    found = lung_mask(image, spacing)
    litres = np.prod(spacing) / 1e6
    assert 1.5 < found.sum() * litres < 8
    sizes = np.sort(np.bincount(ndimage.label(found)[0].ravel())[1:])[::-1]
    assert sizes[:2].sum() > 0.98 * found.sum()  # two, or one where they touch
    # Air of the body by a threshold at half of soft tissue: the lungs have nearly all, gas below them is left out.
    tissue = np.median(image[image > np.percentile(image, 93)])
    dark = image[found] < 0.45 * tissue
    assert dark.mean() > 0.8
    left, right = (np.argwhere(found)[:, 2] < found.shape[2] / 2).mean(), 0.5
    assert abs(left - right) < 0.2  # both lungs


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 11])
def test_lungs_lie_beside_the_heart_unlike_the_stomach(number, real_data):
    """Both parts reach over most of the heart's height; gas of stomach and bowel lies below."""
    folder, name = real_data / "Dataset061_ChestCT", f"chest_{number:02d}"
    volume = sitk.ReadImage(str(folder / "imagesTr" / f"{name}_0000.nii.gz"))[::2, ::2, ::2]
    heart = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{name}.nii.gz"))[::2, ::2, ::2]) == 2
    parts, _ = ndimage.label(lung_mask(sitk.GetArrayFromImage(volume), volume.GetSpacing()[::-1]))
    sizes = np.bincount(parts.ravel())[1:]
    height = heart.any(axis=(1, 2))
    for part in 1 + np.flatnonzero(sizes > 0.02 * sizes.sum()):
        assert (parts == part).any(axis=(1, 2))[height].mean() > 0.7
