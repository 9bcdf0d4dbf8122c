"""A preprocessed dataset: what is missing is said with what would mend it."""

import pickle

import numpy as np
import pytest
from support.small_datasets import write_preprocessed

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.planning.moved_plans import rename_plans


@pytest.mark.parametrize(
    ("there", "message"),
    [((), "no plans nnUNetPlans.json; run:"), (("AlicePlans",), "but AlicePlans; name those with -p, or run:")],
)
def test_missing_plans_are_answered_with_those_that_are_there(tmp_path, monkeypatch, there, message):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset900_CT").mkdir()
    for name in there:
        write_json(tmp_path / "Dataset900_CT" / f"{name}.json", {})
    with pytest.raises(NotPreparedError, match=message):
        PreprocessedDataset.find("Dataset900_CT", "nnUNetPlans", "3d_fullres")


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
    with pytest.raises(InputError, match=r"data_identifier .* no plain name"):
        PreprocessedDataset.find(dataset.name, dataset.plans_name, dataset.configuration)
    with pytest.raises(InputError, match=r"data_identifier .* no plain name"):
        rename_plans(plans, "others")


def test_only_names_go_to_other_processes(dataset):
    assert dataset.cases() == ["c0", "c1", "c2"]
    sent = pickle.dumps(dataset)
    assert b"c1" not in sent and pickle.loads(sent).cases() == dataset.cases()


def test_a_folder_without_a_whole_case_and_one_with_foreign_files_are_told(dataset):
    for path in dataset.folder.glob("*.b2nd"):
        path.rename(path.with_suffix(".hidden"))
    with pytest.raises(NotPreparedError, match="holds no preprocessed case; run:"):
        PreprocessedDataset.find(dataset.name, dataset.plans_name, dataset.configuration)
    for path in dataset.folder.glob("*.hidden"):
        path.rename(path.with_suffix(".b2nd"))
    (dataset.folder / ".DS_Store").touch()
    with pytest.raises(InputError, match=r"files of several kinds; remove what nnU-Net did not write"):
        PreprocessedDataset.find(dataset.name, dataset.plans_name, dataset.configuration)
