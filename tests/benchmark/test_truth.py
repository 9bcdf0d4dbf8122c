"""Truth that does not lie as its image is refused before anything is trained."""

import json
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
from support.labelled_runs import DATASET, PLANS, write_labelled
from support.refused import refused

from nnunet_alice.benchmark.truth import check_truth
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return write_labelled(tmp_path, 2) / "gt_segmentations"


def check(folder):
    check_truth(PreprocessedDataset(DATASET, PLANS, "3d_fullres"), folder, ".nii.gz", ["case00", "case01"])


def rewrite(path, change):
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))


def mirrored(label):
    """The same places in the world; voxels in another order."""
    return sitk.DICOMOrient(label, "RPS")


def turned_header(label):
    """The same voxels; a header that mirrors them."""
    label.SetDirection(np.diag([-1.0, 1.0, 1.0]).ravel().tolist())
    return label


def test_truth_on_the_grid_of_its_image_passes(folder):
    check(folder)


@pytest.mark.parametrize("change", [mirrored, turned_header])
def test_truth_that_is_turned_is_refused_by_name(folder, change):
    rewrite(folder / "case01.nii.gz", change)
    with refused(InputError, path="case01.nii.gz", value="RPS"):
        check(folder)


def test_truth_of_another_size_is_refused(folder):
    rewrite(folder / "case01.nii.gz", lambda label: label[:-1])
    with refused(InputError, path="case01.nii.gz", value="18x20x15"):
        check(folder)


def test_truth_that_cannot_be_read_is_refused(folder):
    (folder / "case00.nii.gz").write_bytes(b"no image")
    with refused(InputError, case="case00"):
        check(folder)


def test_missing_truth_is_refused_before_anything_is_trained(folder):
    (folder / "case01.nii.gz").unlink()
    with refused(InputError, case="case01"):
        check(folder)


def change_properties(folder, change):
    """Rewrite what nnU-Net keeps of the images."""
    for path in (folder.parent / f"{PLANS}_3d_fullres").glob("*.pkl"):
        path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))


def test_images_that_plans_transpose_are_compared_in_the_order_of_the_file(folder):
    """nnU-Net keeps the shape of the transposed array."""

    def transposed(properties):
        return properties | {"shape_before_cropping": tuple(properties["shape_before_cropping"][n] for n in (2, 0, 1))}

    change_properties(folder, transposed)
    plans = folder.parent / f"{PLANS}.json"
    plans.write_text(json.dumps(json.loads(plans.read_text()) | {"transpose_forward": [2, 0, 1]}))
    check(folder)


@pytest.mark.parametrize("turned_by_reader", [False, True])
def test_images_that_nibabel_read_are_compared_too(folder, turned_by_reader):
    """Their properties hold an affine in RAS, here that of an image that lies LPS."""

    def by_nibabel(properties):
        z, y, x = properties["spacing"]
        affine = np.diag([-x, -y, z, 1.0])
        kept = {"original_affine": affine} | ({"reoriented_affine": affine} if turned_by_reader else {})
        return {name: value for name, value in properties.items() if name != "sitk_stuff"} | {"nibabel_stuff": kept}

    change_properties(folder, by_nibabel)
    check(folder)
    rewrite(folder / "case01.nii.gz", mirrored)
    if turned_by_reader:
        check(folder)
    else:
        with refused(InputError, path="case01.nii.gz", value="RPS"):
            check(folder)
