"""nnU-Net's folders for tests of planning."""

import pytest
from support.small_datasets import set_named_folders


@pytest.fixture
def folder(tmp_path, monkeypatch):
    set_named_folders(monkeypatch, tmp_path)
    return tmp_path
