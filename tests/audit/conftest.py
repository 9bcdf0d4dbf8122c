"""Data of the audit: what benchmarks/gpu_check.py trains on, small, written and registered once."""

import importlib.util
import sys
from pathlib import Path

import pytest
from support.small_datasets import set_folders


def _gpu_check():
    """The script that does the same on a real GPU; its rows are the trainers that are audited."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


gpu_check = _gpu_check()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Folder with the data, registered to an atlas, with landmarks."""
    from nnunet_alice.anatomy.atlas import prepare_atlas
    from nnunet_alice.dataset import PreprocessedDataset

    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, folder)
        gpu_check.write_data(folder / "preprocessed", *gpu_check.SIZES["tiny"])
        prepare_atlas(PreprocessedDataset.find(gpu_check.PLAIN, gpu_check.PLANS, gpu_check.CONFIGURATION), 1)
    return folder


@pytest.fixture
def folders(prepared, tmp_path, monkeypatch):
    """nnU-Net's folders: the data of all audits, results of one test; nothing is compiled unless a test says so."""
    set_folders(monkeypatch, prepared)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_compile", "f")
    return tmp_path
