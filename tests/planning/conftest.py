"""nnU-Net's folders for tests of planning."""

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path
