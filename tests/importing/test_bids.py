"""A BIDS folder: the right images, under the subject's name, and nothing of what lies beside them."""

import numpy as np
import pytest
import SimpleITK as sitk
from support.refused import refused
from support.small_datasets import set_named_folders

from nnunet_alice.errors import InputError
from nnunet_alice.importing.bids import bids_cases, is_bids
from nnunet_alice.importing.unlabelled import import_unlabelled


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def bids(tmp_path):
    touch(
        tmp_path,
        "dataset_description.json",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-mprage_run-1_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_T2w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_desc-brain_mask.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
    )
    return tmp_path


@pytest.mark.parametrize("channel", ["T1w", "T1", "t1W"])
def test_one_channel_is_a_suffix(bids, channel):
    cases = {case.name: [path.name for path in case.files] for case in bids_cases(bids, [channel])}
    assert cases == {
        "sub-01": ["sub-01_T1w.nii.gz"],
        "sub-02_ses-a_acq-mprage_run-1": ["sub-02_ses-a_acq-mprage_run-1_T1w.nii.gz"],
        "sub-02_ses-b": ["sub-02_ses-b_T1w.nii.gz"],
    }


def test_endings_in_any_letters_count(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.NII.GZ", "sub-2/anat/sub-2_T1w.Nii", "sub-3/anat/sub-3_T1w.Json")
    assert [case.name for case in bids_cases(tmp_path, ["T1w"])] == ["sub-1", "sub-2"]


def test_several_channels_meet_by_subject_session_and_run(bids):
    cases = {case.name: case for case in bids_cases(bids, ["T1", "T2w"])}
    assert [path.name for path in cases["sub-01"].files] == ["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"]
    assert cases["sub-02_ses-a_run-1"].problem is None and len(cases["sub-02_ses-a_run-1"].files) == 2
    assert "no T2w" in cases["sub-02_ses-b"].problem


def test_two_images_for_one_channel_are_told(bids):
    touch(bids, "sub-01/anat/sub-01_acq-fast_T1w.nii.gz")
    cases = {case.name: case for case in bids_cases(bids, ["T1w", "T2w"])}
    assert "sub-01_T1w.nii.gz and sub-01_acq-fast_T1w.nii.gz" in cases["sub-01"].problem
    assert len(bids_cases(bids, ["T1w"])) == 4, "alone they are two cases"


def test_an_unknown_suffix_is_answered_with_those_there(bids):
    with refused(InputError, option="--channel", value="MRI"):
        bids_cases(bids, ["MRI"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sub-01/anat/x.nii.gz"], True),
        (["sub-01/ses-1/anat/x.nii.gz"], True),
        (["sub-01/x.nii.gz"], False),
        (["anat/sub-01_T1w.nii.gz"], False),
    ],
)
def test_what_is_bids(tmp_path, names, expected):
    touch(tmp_path, *names)
    assert is_bids(tmp_path) == expected


def test_import_takes_it(bids, tmp_path, monkeypatch):
    set_named_folders(monkeypatch, tmp_path / "nnunet", made=True)
    array = np.random.default_rng(0).normal(size=(16, 20, 18)).astype(np.float32)
    array[3:-3, 4:-4, 4:-4] += 100
    for path in bids.glob("sub-*/**/*_T1w.nii.gz"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    report = import_unlabelled(bids, 900, name="Test", channels=("T1",), num_processes=1)
    assert report.imported == ["sub-01", "sub-02_ses-a_acq-mprage_run-1", "sub-02_ses-b"] and not report.left_out
