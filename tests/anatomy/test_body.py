"""Body mask: known bodies in air are found, whatever the scale, the table, the padding and the cut."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_alice.anatomy.body import MAX_CELLS, _cells, body_mask, nonzero_mask

SHAPE = (48, 72, 80)
SPACING_MM = (5.0, 4.0, 4.0)


def ellipse(centre, radii, shape=SHAPE):
    """Elliptic cylinder along z: bool (z, y, x)."""
    _, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    return np.broadcast_to(inside, shape)


def torso(seed=0, table=True, lungs_hu=-850):
    """CT-like torso in HU whose lungs and skin are cut at both ends, on a hollow table that touches the back."""
    rng = np.random.default_rng(seed)
    body = ellipse((34, 40), (20, 30))
    lungs = ellipse((34, 26), (11, 9)) | ellipse((34, 54), (11, 9))
    image = np.full(SHAPE, -1000.0)
    if table:
        image[:, 54:55, 10:70] = -150
        image[:, 64:65, 10:70] = -150
        image[:, 54:65, 10] = image[:, 54:65, 69] = -150
    image[body] = 30
    image[body & ~ellipse((34, 40), (18, 28))] = -100
    image[lungs] = lungs_hu
    image[ellipse((46, 40), (4, 4))] = 600
    return image + rng.normal(0, 20, SHAPE), body


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_torso_with_cut_lungs_and_touching_table():
    image, body = torso()
    mask = body_mask(image, SPACING_MM)
    assert mask.shape == SHAPE and mask.dtype == bool
    assert dice(mask, body) > 0.97
    assert mask[0, 34, 26] and mask[-1, 34, 54], "cut lungs belong to the body"
    assert mask[:, 57:, :].mean() < 0.02, "the table does not"


@pytest.mark.parametrize(
    "transform",
    [
        lambda v: v.astype(np.int16),
        lambda v: ((v - 40) / 200).astype(np.float32),
        lambda v: (np.clip(v, -160, 240) - 40) / 90,
        lambda v: v * 1e6 + 5e8,
    ],
    ids=["int16", "z-scored", "clipped like nnU-Net", "huge"],
)
def test_scale_does_not_matter(transform):
    image, body = torso(1)
    assert dice(body_mask(transform(image), SPACING_MM), body) > 0.97


def test_padding_outside_the_field_of_view():
    image, body = torso(2)
    outside = ~ellipse((36, 40), (36, 36))
    image[outside] = -3024
    assert dice(body_mask(image, SPACING_MM), body & ~outside) > 0.96


def test_zero_background_in_the_middle_of_the_histogram():
    """A stripped, z-scored brain: background is exactly 0, tissue lies on both sides of it."""
    rng = np.random.default_rng(0)
    brain = ellipse((36, 40), (26, 30))
    image = np.where(brain, rng.normal(0, 1, SHAPE), 0)
    assert dice(body_mask(image, SPACING_MM), brain) > 0.97


def test_head_keeps_skull_and_scalp():
    rng = np.random.default_rng(0)
    head = ellipse((36, 40), (32, 36))
    image = np.where(head, 900.0, 0)
    image[ellipse((36, 40), (31, 35))] = 60
    image[ellipse((36, 40), (29, 33))] = 500
    image = np.abs(image + rng.normal(0, 15, SHAPE))
    bias = np.linspace(0.6, 1.4, SHAPE[2])
    assert dice(body_mask(image * bias, (1.0, 1.0, 1.0)), head) > 0.97


def test_axial_axis_may_be_any():
    image, body = torso(3)
    for axes in ((1, 0, 2), (2, 1, 0)):
        turned = body_mask(image.transpose(axes), [SPACING_MM[a] for a in axes], axial_axis=axes.index(0))
        assert dice(turned, body.transpose(axes)) > 0.97


def test_no_air_means_all_body():
    rng = np.random.default_rng(0)
    tissue = ndimage.gaussian_filter(rng.normal(size=(36, 50, 36)), 2)
    assert body_mask(tissue, (1, 1, 1)).all()
    # Gas in the bowel is air, but not around the body.
    image, _ = torso(4, lungs_hu=30)
    crop = image[:, 24:44, 30:50].copy()
    crop[20:28, 5:12, 5:12] = -1000
    assert body_mask(crop, SPACING_MM).all()


@pytest.mark.parametrize("image", [np.zeros((8, 8, 8)), np.eye(9).reshape(1, 9, 9), np.ones((1, 1, 1))])
def test_never_empty(image):
    assert body_mask(image, (1, 1, 1)).any()


def test_channels_are_united():
    image, body = torso(5)
    upper = np.where(
        np.arange(SHAPE[0])[:, None, None] < 24, image, -1000 + np.random.default_rng(0).normal(0, 9, SHAPE)
    )
    lower = upper[::-1]
    assert dice(body_mask(upper, SPACING_MM), body) < 0.8
    assert dice(body_mask(np.stack([upper, lower]), SPACING_MM), body) > 0.97


def test_fine_grids_are_thinned_and_enlarged_again():
    image, body = torso(6)
    fine, truth = (np.repeat(np.repeat(a, 3, axis=1), 3, axis=2)[:, :-2, :-1] for a in (image, body))
    mask = body_mask(fine, (5.0, 4 / 3, 4 / 3))
    assert mask.shape == fine.shape
    assert dice(mask, truth) > 0.97


@pytest.mark.parametrize("unit", [1e-3, 0.02, 0.15, 10.0])
def test_no_length_is_human(unit):
    """Voxels of 1 um to 10 mm: the mask is that of voxels of 1 mm, and so is the work."""
    image, _ = torso(7)
    fine, spacing = np.repeat(np.repeat(image, 3, axis=1), 3, axis=2), np.asarray((1.0, 0.3, 0.3))
    np.testing.assert_array_equal(body_mask(fine, unit * spacing), body_mask(fine, spacing))


@pytest.mark.parametrize("shape", [(96, 110, 90), (250, 250, 250), (20, 512, 512), (3000, 64, 64), (60, 400, 400)])
@pytest.mark.parametrize("spacing_mm", [(0.15, 0.15, 0.15), (1e-3, 1e-3, 1e-3), (10.0, 0.5, 0.5), (0.01, 1.0, 1.0)])
def test_work_is_bounded_for_every_grid(shape, spacing_mm):
    """The opening costs cells times elements of its ball, which had billions of them when its radius was in mm."""
    factors, ball = _cells(shape, spacing_mm)
    assert np.prod(np.divide(shape, factors)) <= MAX_CELLS
    assert ball.any() and max(ball.shape) <= 7


@pytest.mark.parametrize("channels", [1, 2])
def test_nonzero_is_what_nnunet_takes_for_it(channels):
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (channels, 12, 13, 14)) * rng.normal(size=(channels, 12, 13, 14))
    images[:, 3:9, 3:9, 3:9] = 1
    images[:, 5:7, 5:7, 5:7] = 0
    before = images.copy()
    for image in (images, np.ones_like(images)):
        np.testing.assert_array_equal(nonzero_mask(image), create_nonzero_mask(image))
    np.testing.assert_array_equal(images, before)


def test_wrong_axes_are_refused():
    with pytest.raises(ValueError):
        body_mask(np.zeros((4, 4)), (1, 1, 1))


@pytest.mark.slow
def test_real_torso(real_data):
    image = sitk.ReadImage(str(real_data / "ct" / "torso_ct.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    mask = body_mask(array, image.GetSpacing()[::-1])
    # Soft tissue is inside, air in front of the body and the table behind it are outside.
    tissue = (array > -150) & (array < 300)
    assert mask[tissue].mean() > 0.98
    assert ndimage.label(mask)[1] == 1
    corners = [mask[:, y, x].any() for y in (0, -1) for x in (0, -1)]
    assert not any(corners)
    clipped = np.clip((array - 20.0) / 150, -3, 3)
    assert dice(body_mask(clipped, image.GetSpacing()[::-1]), mask) > 0.97


def test_real_hippocampus_is_all_body(real_data):
    files = sorted((real_data / "Task04_Hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz"))[::8]
    assert files
    for file in files:
        image = sitk.ReadImage(str(file))
        assert body_mask(sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]).all(), file.name
