"""What tests of several trainers share."""

import pytest
from support.small_datasets import set_folders


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders, in-process loading."""
    set_folders(monkeypatch, tmp_path)
    return tmp_path
