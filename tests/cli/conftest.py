"""An unlabelled dataset and a target, for all tests of `plan`."""

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from support.planned_datasets import TARGET, UNLABELLED, write_dataset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def datasets(folder, caplog):
    """An unlabelled dataset and a target that nnU-Net has planned; the log is kept as the command line shows it."""
    caplog.set_level("INFO")
    write_dataset(folder, UNLABELLED)
    write_dataset(folder, TARGET, labels=("background", "liver", "spleen", "kidney"))
    ExperimentPlanner(TARGET).plan_experiment()
    return folder / "nnUNet_preprocessed"
