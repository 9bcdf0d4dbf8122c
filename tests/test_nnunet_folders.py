"""nnU-Net's folders: what is missing is said with what would mend it."""

import os

import pytest
from support.refused import refused

from nnunet_alice.cli.main import main
from nnunet_alice.errors import InputError, OccupiedError
from nnunet_alice.nnunet_folders import dataset_name, new_dataset_name, plain_name


def test_unset_folders_are_named_before_any_dataset_is_missed(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    with refused(InputError, option="nnUNet_preprocessed", command="export"):
        dataset_name(900)


def test_a_disk_that_refuses_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_raw", os.fspath(tmp_path / "file" / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"no image")
    assert main(["import", "-i", str(tmp_path / "scans"), "-d", "900", "-n", "X", "--channel", "CT", "-np", "1"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Not a directory" in message


@pytest.mark.parametrize("folder", ["raw", "preprocessed", "results"])
def test_a_new_dataset_takes_no_number_that_any_folder_knows(tmp_path, monkeypatch, folder):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / folder / "Dataset017_Abdomen").mkdir(parents=True)
    assert new_dataset_name(17, "Abdomen") == "Dataset017_Abdomen"
    with refused(OccupiedError, option="-d", value=17):
        new_dataset_name(17, "BTCV")
    with refused(InputError, option="-d", value=0):
        new_dataset_name(0, "BTCV")


LEAVES = ["../evil", "a/b", "/etc/x", "..", ".", "", ".hidden", "a\\b", "a\nb", "a\0b"]


@pytest.mark.parametrize("name", LEAVES)
def test_names_that_would_leave_their_folder_are_refused(name):
    with refused(InputError, option="-x", value=name):
        plain_name(name, "-x")


@pytest.mark.parametrize("name", ["nnUNetPlans", "My plans 2", "a-b_c.d", "Pläne"])
def test_other_names_are_as_good_as_ever(name):
    assert plain_name(name, "-x") == name


@pytest.mark.parametrize("dataset", ["Dataset004_../../x", "Dataset004_a/b", "../Dataset004_x"])
def test_a_dataset_is_no_path(dataset):
    with refused(InputError, value=dataset):
        dataset_name(dataset)


@pytest.mark.parametrize(
    "command",
    [
        ["anatomy", "-d", "4", "-p", "../evil"],
        ["match", "-d", "4", "-p", "../evil", "--from", "a", "--point", "0", "0", "0"],
        ["transfer", "-i", "a.pth", "-d", "4", "-p", "../evil", "-o", "b.pth"],
        ["convert_btcv", "-i", "RawData", "-d", "17", "-n", "../evil"],
        ["predict_targets", "-i", "RawData", "-o", "x.csv", "-m", ".", "-f", "../evil"],
        ["predict_targets", "-i", "RawData", "-o", "x.csv", "-m", ".", "-chk", "../evil.pth"],
    ],
)
def test_no_command_reads_or_writes_beside_its_folder(tmp_path, monkeypatch, capsys, command):
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / "Dataset004_T").mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for part in ("img", "label"):
        (tmp_path / "RawData" / "Training" / part).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(command) == 1
    assert "letters, digits" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
