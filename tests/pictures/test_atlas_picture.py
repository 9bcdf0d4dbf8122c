"""Checkerboards of registrations."""

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import ndimage
from support.small_datasets import ball, write_preprocessed

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.pictures.atlas import checkerboards, draw_atlas


def geometry(image: np.ndarray, spacing=(2.0, 2.0, 2.0)) -> CaseGeometry:
    body = np.ones(image.shape, bool)
    return CaseGeometry("case", image.shape, spacing, (1, 1, 1), image.shape, image, np.packbits(body))


def smooth(shape) -> np.ndarray:
    z, y, x = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    return (255 * (z + 2 * y + 3 * x) / 6).astype(np.uint8)


def test_a_right_registration_goes_on_across_the_tiles_and_a_wrong_one_does_not():
    atlas = geometry(smooth((24, 30, 40)))
    # The case shows the atlas from cell 6 of x on, on a finer grid.
    case = geometry(np.repeat(atlas.image[:, :, 6:], 2, axis=2), (2.0, 2.0, 1.0))
    truth = np.eye(4)
    truth[2, 3] = 6 * 2.0 - 0.5
    same = checkerboards(atlas, atlas, np.eye(4))[..., 0]
    right = checkerboards(case, atlas, truth)[..., 0]
    wrong = checkerboards(case, atlas, np.eye(4))[..., 0]
    # Red is tinted by neither: it is the intensity itself. What the case does not show is black, and its border dims.
    shown = ndimage.binary_erosion(right > 0, iterations=12)
    assert shown.mean() > 0.5
    assert np.abs(right - same)[shown].max() < 0.05
    assert np.abs(wrong - same)[shown].max() > 0.05


def test_pixels_are_square_in_mm():
    picture = checkerboards(*[geometry(smooth((10, 20, 40)), (4.0, 1.0, 1.0))] * 2, np.eye(4))
    heights_to_widths = [20 / 40, 40 / 40, 40 / 20]  # of y x, z x, z y
    expected = sum(round(picture.shape[0] / ratio) for ratio in heights_to_widths) + 2 * 4
    assert picture.shape[1] == pytest.approx(expected, abs=2)


def test_picture_is_drawn_also_from_a_report_read_from_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    images = {case: ball((20, 20, 20), (2.0, 2.0, 2.0), size) for case, size in zip("abc", (14, 15, 16), strict=True)}
    dataset = write_preprocessed(tmp_path, images, (2.0, 2.0, 2.0))
    report = prepare_atlas(dataset, 1, atlas_case="a")
    fresh = imread(draw_atlas(dataset, report))
    assert fresh.std() > 0.1
    again = imread(draw_atlas(dataset, AtlasFiles(dataset).read_report()))
    np.testing.assert_array_equal(fresh, again)
