"""World coordinates of preprocessed voxels: a blob put somewhere in a file is found there again after preprocessing."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from scipy import ndimage
from support.refused import refused
from support.small_datasets import write_preprocessed

from nnunet_alice.anatomy.world import (
    NoWorldError,
    PreparedCases,
    array_orientation,
    dataset_orientation,
    file_grid,
    world_affine,
)
from nnunet_alice.errors import InputError

TARGET_SPACING = (2.0, 1.5, 1.0)


def blob_file(path, direction):
    """Smooth blob in a frame of zeros that nnU-Net crops away; returns the blob's centre in LPS mm."""
    array = np.zeros((30, 40, 50), dtype=np.float32)
    grids = np.meshgrid(*map(np.arange, array.shape), indexing="ij")
    at = (13.0, 22.0, 31.0)
    array[4:28, 6:38, 8:47] = 0.01
    array += 100 * np.exp(-sum((g - a) ** 2 for g, a in zip(grids, at, strict=True)) / 18) * (array > 0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.2, 0.9, 3.0))
    image.SetOrigin((-20.0, 35.0, 110.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return np.array(image.TransformContinuousIndexToPhysicalPoint(at[::-1]))


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (0, -1, 0, 1, 0, 0, 0, 0, -1)])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_world_position_survives_reading_transposing_cropping_and_resampling(tmp_path, reader, direction, transpose):
    expected = blob_file(tmp_path / "case.nii.gz", direction)
    data, properties = reader().read_images([str(tmp_path / "case.nii.gz")])
    # what nnU-Net's preprocessor does, in its order
    data = data.transpose([0, *(axis + 1 for axis in transpose)])
    spacing = [properties["spacing"][axis] for axis in transpose]
    data, _, properties["bbox_used_for_cropping"] = crop_to_nonzero(data, None)
    properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
    shape = compute_new_shape(data.shape[1:], spacing, TARGET_SPACING)
    data = resample_data_or_seg_to_shape(data, shape, spacing, TARGET_SPACING, order=3)
    affine = world_affine(properties, transpose, data.shape[1:])
    found = np.array(ndimage.center_of_mass(np.where(data[0] > 20, data[0], 0)))
    assert np.linalg.norm(affine.points(found[None])[0] - expected) < 0.3
    np.testing.assert_allclose(affine.points_back(affine.points(found[None])), found[None])


OBLIQUE = (-0.98, 0, -0.199, 0, 1, 0, -0.199, 0, 0.98)


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize(
    "direction", [np.eye(3).ravel(), (-1, 0, 0, 0, 1, 0, 0, 0, 1), (0, -1, 0, 1, 0, 0, 0, 0, -1), OBLIQUE]
)
def test_the_grid_of_a_file_is_that_of_its_header_whatever_the_reader_turned(tmp_path, reader, direction):
    blob_file(tmp_path / "case.nii.gz", direction)
    image = sitk.ReadImage(str(tmp_path / "case.nii.gz"))
    data, properties = reader().read_images([str(tmp_path / "case.nii.gz")])
    properties["shape_before_cropping"] = data.transpose(0, 3, 1, 2).shape[1:]
    affine, shape = file_grid(properties, (2, 0, 1))
    assert shape == (30, 40, 50)
    for x, y, z in [(0, 0, 0), (3, 5, 7), (49, 0, 29)]:
        world = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(affine.points((z, y, x)), world, atol=1e-3)


def test_properties_without_geometry_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    image = np.zeros((1, 8, 8, 8))
    known = {"shape_after_cropping_and_before_resampling": (8, 8, 8), "bbox_used_for_cropping": [[0, 8]] * 3}
    cases = PreparedCases(write_preprocessed(tmp_path, {"c0": image}, (1, 1, 1), properties={"c0": known}))
    with refused(NoWorldError, case="c0", value="'nibabel_stuff'"):
        cases.world_affine("c0")


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("letters", ["LPS", "LAS", "RAS", "PIR", "SLA"])
def test_how_an_array_lies_is_read_off_its_properties(tmp_path, reader, letters):
    blob_file(tmp_path / "case.nii.gz", (1, 0, 0, 0, 1, 0, 0, 0, 1))
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "case.nii.gz")), letters)
    sitk.WriteImage(turned, str(tmp_path / "turned.nii.gz"))
    _, properties = reader().read_images([str(tmp_path / "turned.nii.gz")])
    assert array_orientation(properties) == ("RAS" if "Reorient" in reader.__name__ else letters)


def lying(*directions):
    """Properties of cases with these diagonal directions."""
    stuff = [{"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.diag(d).ravel()} for d in directions]
    return {f"case{number}": {"sitk_stuff": one} for number, one in enumerate(stuff)}


@pytest.mark.parametrize(
    ("properties", "planned", "expected"),
    [
        (lying((1, 1, 1), (1, 1, 1)), "RAS", "LPS"),  # plans that nnU-Net moved say how the other dataset lies
        (lying((1, 1, 1), (-1, 1, 1)), None, "mixed"),
        ({"case0": {}, "case1": {}}, "LAS", "LAS"),
        ({"case0": {}, "case1": {}}, None, ""),
    ],
)
def test_how_a_dataset_lies(tmp_path, monkeypatch, properties, planned, expected):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    images = {case: np.zeros((1, 4, 4, 4)) for case in properties}
    dataset = write_preprocessed(tmp_path, images, (1, 1, 1), properties=properties)
    if planned:
        dataset.plans["orientation"] = planned
    assert dataset_orientation(dataset) == expected


def test_a_damaged_case_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    dataset = write_preprocessed(tmp_path, {"a": np.zeros((1, 4, 4, 4))}, (1, 1, 1))
    (dataset.folder / "a.pkl").write_bytes(b"no pickle")
    for ask in (PreparedCases(dataset).world_affine, PreparedCases(dataset).file_grid):
        with refused(InputError, case="a", path=dataset.folder):
            ask("a")


def test_a_2d_image_has_no_orientation(tmp_path):
    """As `FineTuneTrainer` asks for it, which trains on 2D images, too."""
    sitk.WriteImage(sitk.Image(6, 5, sitk.sitkFloat32), str(tmp_path / "slice.nii.gz"))
    _, properties = SimpleITKIO().read_images([str(tmp_path / "slice.nii.gz")])
    assert array_orientation(properties) == ""
