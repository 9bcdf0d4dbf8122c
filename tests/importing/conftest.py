"""nnU-Net's folders, and a folder of scans, for all tests of importing."""

import pytest
from support.raw_volumes import write


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    write(folder / "good.nii.gz")
    return folder
