"""Letters of images, from their headers; and what becomes of their axes when nnU-Net turns them."""

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_alice.anatomy.orientation import (
    axes_after_turning,
    axial_axis,
    axial_axis_of_plans,
    differ,
    file_orientation,
    is_orientation,
    orientation,
    orientation_as_read,
    reader_that_gives,
)

ALL = ["".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)]


@pytest.fixture(scope="module")
def image():
    return sitk.GetImageFromArray(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4))


@pytest.mark.parametrize("letters", ALL)
def test_letters_and_axes_of_every_orientation(image, letters, tmp_path):
    turned = sitk.DICOMOrient(image, letters)
    assert orientation(turned) == letters and is_orientation(letters)
    for name in ("a.nii.gz", "a.nrrd"):
        sitk.WriteImage(turned, str(tmp_path / name))
        assert file_orientation(tmp_path / name) == letters
    assert turned.GetSize()[2 - axial_axis(letters)] == 2, "z of the image as it was made runs along the body"
    back = sitk.DICOMOrient(turned, "RAS")
    axes = axes_after_turning(letters, "RAS")
    assert back.GetSize()[::-1] == tuple(turned.GetSize()[::-1][axis] for axis in axes)


@pytest.mark.parametrize("letters", ["", "LP", "LRS", "lps", "LPSI", "XYZ"])
def test_what_is_no_orientation(letters):
    assert not is_orientation(letters)


def test_skewed_axes_have_letters_too(tmp_path):
    affine = np.diag([-1.0, 1, 1, 1])
    affine[1, 2] = 0.2
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), affine), tmp_path / "a.nii")
    assert file_orientation(tmp_path / "a.nii") == "LAS"
    (tmp_path / "b.nii").write_text("no image")
    assert file_orientation(tmp_path / "b.nii") is None and file_orientation(tmp_path / "c.nii") is None


def test_readers_that_turn_give_ras():
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    turning = {reader.__name__ for reader in LIST_OF_IO_CLASSES if "Reorient" in reader.__name__}
    assert {name for name in (r.__name__ for r in LIST_OF_IO_CLASSES) if orientation_as_read("LPI", name) == "RAS"} == (
        turning
    )
    assert orientation_as_read("LPI", "SimpleITKIO") == "LPI"


@pytest.mark.parametrize(
    ("plans", "axis"),
    [
        ({"transpose_forward": [0, 1, 2]}, 0),
        ({"transpose_forward": [2, 0, 1]}, 1),
        ({"transpose_forward": [0, 1, 2], "orientation": "RAS"}, 0),
        ({"transpose_forward": [0, 1, 2], "orientation": "PIR"}, 1),
        ({"transpose_forward": [1, 0, 2], "orientation": "PIR"}, 0),
        ({"transpose_forward": [1, 0, 2], "orientation": "mixed"}, 1),
    ],
)
def test_axial_axis_of_preprocessed_arrays(plans, axis):
    assert axial_axis_of_plans(plans) == axis


@pytest.mark.parametrize(
    ("letters", "reader", "expected"),
    [
        ("RAS", "SimpleITKIO", "SimpleITKIOWithReorient"),
        ("RAS", "NibabelIOWithReorient", "NibabelIOWithReorient"),
        ("LPS", "SimpleITKIOWithReorient", "SimpleITKIO"),
        ("LPS", "NibabelIO", "NibabelIO"),
        ("", "SimpleITKIOWithReorient", "SimpleITKIOWithReorient"),
        ("mixed", "SimpleITKIO", "SimpleITKIO"),
        ("RAS", "Tiff3DIO", "Tiff3DIO"),
    ],
)
def test_the_reader_of_an_orientation(letters, reader, expected):
    assert reader_that_gives(letters, reader) == expected


def test_only_known_orientations_differ():
    assert differ("LPS", "RAS") and not differ("LPS", "LPS")
    assert not any(differ("LPS", other) or differ(other, "LPS") for other in ("", "mixed"))
