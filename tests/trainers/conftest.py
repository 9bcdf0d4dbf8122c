"""What tests of several trainers share."""

import pytest
from support.labelled_runs import stay_in_process, write_labelled, write_splits
from support.small_datasets import set_folders


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders, in-process loading."""
    set_folders(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Three labelled cases, one of them held out."""
    set_folders(monkeypatch, tmp_path)
    stay_in_process(monkeypatch)
    folder = write_labelled(tmp_path / "preprocessed", 3)
    write_splits(folder, (["case00", "case01"], ["case02"]))
    return folder
