"""A preprocessed dataset: what is missing is said with what would mend it."""

import pickle

import numpy as np
import pytest
from support.refused import refused
from support.small_datasets import write_preprocessed

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.planning.moved_plans import rename_plans


@pytest.mark.parametrize("there", [(), ("AlicePlans",)])
def test_missing_plans_are_answered_with_those_that_are_there(tmp_path, monkeypatch, there):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset900_CT").mkdir()
    for name in there:
        write_json(tmp_path / "Dataset900_CT" / f"{name}.json", {})
    with refused(NotPreparedError, value="nnUNetPlans", command="nnunet_alice plan -d 900") as caught:
        PreprocessedDataset.find("Dataset900_CT", "nnUNetPlans", "3d_fullres")
    assert all(name in str(caught.value) for name in there)


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> PreprocessedDataset:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return write_preprocessed(
        tmp_path, {f"c{i}": np.zeros((1, 8, 8, 8), np.float32) for i in range(3)}, (1.0, 1.0, 1.0)
    )


def test_plans_of_somebody_that_name_a_folder_elsewhere_are_refused(dataset):
    path = dataset.base / f"{dataset.plans_name}.json"
    plans = read_json(path)
    plans["configurations"][dataset.configuration]["data_identifier"] = "../elsewhere"
    write_json(path, plans)
    with refused(InputError, value="../elsewhere"):
        PreprocessedDataset.find(dataset.name, dataset.plans_name, dataset.configuration)
    with refused(InputError, value="../elsewhere"):
        rename_plans(plans, "others")


def test_only_names_go_to_other_processes(dataset):
    assert dataset.cases() == ["c0", "c1", "c2"]
    sent = pickle.dumps(dataset)
    assert b"c1" not in sent and pickle.loads(sent).cases() == dataset.cases()


def test_a_folder_without_a_whole_case_and_one_with_foreign_files_are_told(dataset):
    for path in dataset.folder.glob("*.b2nd"):
        path.rename(path.with_suffix(".hidden"))
    with refused(NotPreparedError, path=dataset.folder):
        PreprocessedDataset.find(dataset.name, dataset.plans_name, dataset.configuration)
    for path in dataset.folder.glob("*.hidden"):
        path.rename(path.with_suffix(".b2nd"))
    (dataset.folder / ".DS_Store").touch()
    with refused(InputError, path=dataset.folder):
        PreprocessedDataset.find(dataset.name, dataset.plans_name, dataset.configuration)
