"""nnU-Net's folders: what is missing is said with what would mend it."""

import os

import pytest

from nnunet_alice.cli.main import main
from nnunet_alice.errors import InputError
from nnunet_alice.nnunet_folders import dataset_name


def test_unset_folders_are_named_before_any_dataset_is_missed(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match="nnUNet_preprocessed is not set; run: export"):
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
