"""The command `nnunet_alice import`: exit status, what it prints, what it writes."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main


@pytest.fixture
def scans(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for other in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(other, raising=False)
    folder = tmp_path / "scans"
    folder.mkdir()
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32))
    for number in range(2):
        sitk.WriteImage(image, str(folder / f"a_000{number}.nii.gz"))
    return folder


def command(folder, *more):
    return main(["import", "-i", str(folder), "-d", "900", "-n", "New", "-np", "1", *more])


@pytest.mark.parametrize("channels", [["--channel", "T1", "T2"], ["--channel", "T1", "--channel", "T2"]])
def test_import_prints_the_next_command(scans, tmp_path, capsys, channels):
    assert command(scans, *channels) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 case imported (1 now, 0 before), 0 failed" in printed
    assert "nnunet_alice plan -d 900" in printed
    assert (tmp_path / "raw" / "Dataset900_New" / "dataset.json").is_file()


def test_bad_files_are_named_and_an_error_only_if_strict(scans, capsys):
    (scans / "b_0000.nii.gz").write_text("x")
    assert command(scans, "--channel", "T1", "T2") == SOME_FAILED
    printed = capsys.readouterr().out
    assert "1 of 2 cases imported" in printed and "failed: b: missing channel" in printed
    assert command(scans, "--channel", "T1", "T2", "--strict") == 1
    assert "1 of 2 cases were left out" in capsys.readouterr().err


def test_nothing_imported_is_an_error(scans, capsys):
    assert command(scans, "--channel", "CT") == 1
    assert "None of 1 case" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["import", "-h"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "Example: nnunet_alice import -i" in printed and "DICOM series" in printed
