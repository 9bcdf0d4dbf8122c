"""nnU-Net's folders, and a folder of scans, for all tests of importing."""

import pytest
from support.raw_volumes import write
from support.small_datasets import set_named_folders


@pytest.fixture
def raw(tmp_path, monkeypatch):
    set_named_folders(monkeypatch, tmp_path, made=True)
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    write(folder / "good.nii.gz")
    return folder
