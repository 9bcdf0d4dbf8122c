"""What tests of several trainers share."""

import shutil

import pytest
from support.labelled_runs import stay_in_process, write_labelled, write_splits
from support.pretraining_runs import DATASET, PLANS, phantom_images, write_run
from support.small_datasets import set_folders

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.dataset import PreprocessedDataset


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


@pytest.fixture
def fresh_run(folders):
    """Four phantoms, preprocessed; no anatomy yet."""
    write_run(folders / "preprocessed", phantom_images(4))
    return folders / "preprocessed"


@pytest.fixture(scope="package")
def registered(tmp_path_factory):
    """The same, registered to an atlas, once for all tests."""
    base = tmp_path_factory.mktemp("registered")
    write_run(base, phantom_images(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(base))
        prepare_atlas(PreprocessedDataset.find(DATASET, PLANS, "3d_fullres"), 1)
    return base


@pytest.fixture
def small_run(folders, registered):
    """A copy of the registered dataset."""
    shutil.copytree(registered, folders / "preprocessed", dirs_exist_ok=True)
    return folders / "preprocessed"
