"""Truth that does not lie as its image is refused before anything is trained."""

import numpy as np
import pytest
import SimpleITK as sitk
from support.labelled_runs import DATASET, PLANS, write_labelled

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
    with pytest.raises(InputError, match=r"case01\.nii\.gz lies RPS and its image LPS"):
        check(folder)


def test_truth_of_another_size_is_refused(folder):
    rewrite(folder / "case01.nii.gz", lambda label: label[:-1])
    with pytest.raises(InputError, match=r"has 18x20x15 voxels .* and its image 18x20x16"):
        check(folder)


def test_truth_that_cannot_be_read_is_refused(folder):
    (folder / "case00.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="The truth of case00 cannot be read"):
        check(folder)
