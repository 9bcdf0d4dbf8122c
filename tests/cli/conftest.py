"""Datasets, indices and checkpoints that tests of several commands share."""

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from support.known_matches import write_known_matches
from support.launched import asked
from support.planned_datasets import TARGET, UNLABELLED, write_dataset
from support.publications import checkpoint, home, published
from support.small_datasets import set_named_folders
from support.small_unets import make_network_fixture, make_plans_fixture, target_dataset

__all__ = [
    "asked",
    "checkpoint",
    "home",
    "make_network_fixture",
    "make_plans_fixture",
    "published",
    "target_dataset",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    set_named_folders(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def datasets(folder, caplog):
    """An unlabelled dataset and a target that nnU-Net has planned; the log is kept as the command line shows it."""
    caplog.set_level("INFO")
    write_dataset(folder, UNLABELLED)
    write_dataset(folder, TARGET, labels=("background", "liver", "spleen", "kidney"))
    ExperimentPlanner(TARGET).plan_experiment()
    return folder / "nnUNet_preprocessed"


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    """Preprocessed cases whose right matches are known."""
    base = tmp_path_factory.mktemp("preprocessed")
    write_known_matches(base)
    return base


@pytest.fixture
def in_matched(matched, tmp_path, monkeypatch):
    """nnU-Net's folders and the working folder of a user who matches."""
    monkeypatch.setenv("nnUNet_preprocessed", str(matched))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.chdir(tmp_path)
