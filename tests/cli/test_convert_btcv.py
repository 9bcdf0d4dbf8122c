"""The command convert_btcv: what it says of whole and of damaged folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.btcv import label_of, write, write_raw_data
from support.small_datasets import set_named_folders

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main
from nnunet_alice.importing.btcv import convert


@pytest.fixture
def raw_data(tmp_path, monkeypatch) -> Path:
    set_named_folders(monkeypatch, tmp_path)
    return write_raw_data(tmp_path / "RawData")


def test_it_writes_a_dataset_and_says_what_comes_next(raw_data, tmp_path, capsys):
    assert main(["convert_btcv", "-i", str(raw_data), "-d", "17", "-np", "1"]) == 0
    folder = next((tmp_path / "nnUNet_raw").glob("Dataset017_*"))
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 30
    printed = capsys.readouterr().out
    assert "30 cases" in printed and "Next:" in printed


@pytest.fixture
def damaged(raw_data) -> Path:
    (raw_data / "Training/label/label0003.nii.gz").unlink()
    write(raw_data / "Training/label/label0022.nii.gz", np.ones((4, 6, 6), dtype=np.uint8))
    write(raw_data / "Training/label/label0040.nii.gz", np.where(label_of(40) == 13, 14, label_of(40)).astype(np.uint8))
    return raw_data


@pytest.mark.slow
def test_bad_cases_are_all_named_and_nothing_is_written(damaged, tmp_path, capsys):
    assert main(["convert_btcv", "-i", str(damaged), "-d", "17"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "3 of 30 cases" in message
    assert "BTCV_0003: label0003.nii.gz is missing" in message
    assert "BTCV_0022: image of 4x6x5 voxels but label of 4x6x6" in message
    assert "BTCV_0040: unknown label 14" in message
    assert not (tmp_path / "nnUNet_raw").exists()


@pytest.mark.slow
def test_bad_cases_can_be_left_out(damaged, capsys):
    assert main(["convert_btcv", "-i", str(damaged), "-d", "17", "--skip_bad", "--split", "monai"]) == SOME_FAILED
    assert "27 cases" in capsys.readouterr().out
    result = convert(damaged, 17, skip_bad=True)
    assert set(result.left_out) == {"BTCV_0003", "BTCV_0022", "BTCV_0040"} and len(result.cases) == 27
    dataset = json.loads((result.folder / "dataset.json").read_text())
    assert dataset["numTraining"] == 27 and dataset["left_out"] == result.left_out
    split = json.loads((result.folder / "splits_monai.json").read_text())[0]
    assert len(split["train"]) == 22 and len(split["val"]) == 5


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_one_sentence(raw_data, tmp_path, capsys):
    (tmp_path / "nnUNet_raw").touch()
    assert main(["convert_btcv", "-i", str(raw_data), "-d", "17"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "could not be written (Not a directory)" in message
