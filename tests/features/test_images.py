"""Images to take features of: a voxel of a user's file is found again, however the image is turned on the way."""

import numpy as np
import pytest
import SimpleITK as sitk
from support.plans import configuration, minimal_plans, normalised_by, resampled

from nnunet_alice.features.images import RawImages
from nnunet_alice.features.maps import DenseMap, write_maps
from nnunet_alice.features.patch_labels import PatchLabels


def run_of(lies: str, reader: str) -> dict:
    """What a checkpoint keeps of a pretraining on images that lay so; voxels stay as they are."""
    full = configuration((2.0, 2.0, 2.0), **normalised_by("NoNormalization"), **resampled())
    plans = minimal_plans("Dataset900_Small", {"3d_fullres": full}, (1, 0, 2), image_reader_writer=reader)
    plans["foreground_intensity_properties_per_channel"] = {"0": {}}
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    run = {"plans": plans, "configuration": "3d_fullres", "num_input_channels": 1, "dataset_json": dataset_json}
    return run | {"orientation": lies}


def rotated(image: sitk.Image) -> sitk.Image:
    """The same voxels, their axes 11 degrees off."""
    turn = np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]])
    image.SetDirection((turn @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
    return image


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
@pytest.mark.parametrize("trained", ["LPS", "LAS", "RAS"])
@pytest.mark.parametrize(("lies", "oblique"), [("LPS", False), ("LAS", True), ("RAS", False), ("PIR", True)])
def test_a_voxel_of_the_file_is_found_and_maps_lie_on_its_grid(tmp_path, reader, trained, lies, oblique):
    """Images are turned by a copy, by nnU-Net's reader (to RAS), or not at all."""
    array = np.random.default_rng(0).uniform(1, 2, (12, 14, 16)).astype(np.float32)
    upright = sitk.GetImageFromArray(array)
    upright.SetSpacing((2.0, 2.0, 2.0)), upright.SetOrigin((-30.0, 12.0, 70.0))
    image = sitk.DICOMOrient(upright, lies)
    (tmp_path / "raw").mkdir()
    sitk.WriteImage(rotated(image) if oblique else image, str(tmp_path / "raw" / "c_0000.nii.gz"))
    file = sitk.ReadImage(str(tmp_path / "raw" / "c_0000.nii.gz"))
    opened = RawImages(tmp_path / "raw", run_of(trained, reader)).open("c")
    points = np.array([[3, 5, 7], [9, 1, 2]])
    cases = np.array(["c", "c"])
    found = PatchLabels(cases, points, False, cases, cases).points_vox(np.arange(2), opened)
    values = opened.image[(0, *np.rint(found).astype(int).T)]
    np.testing.assert_allclose(values, [file[point] for point in points.tolist()], rtol=1e-5)
    same = DenseMap(opened.image, np.ones(opened.geometry.shape, dtype=bool), np.zeros(3), np.ones(3))
    written = sitk.ReadImage(str(write_maps(tmp_path, opened, same, ["value"])["value"]))
    for ours, theirs in ((written.GetOrigin(), file.GetOrigin()), (written.GetDirection(), file.GetDirection())):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(file), rtol=1e-4)
