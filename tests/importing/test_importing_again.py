"""Importing again: what a verdict depends on makes it current, and nothing is lost for a question asked wrongly."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from support.raw_volumes import cut, run, volume, write
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.importing import cases, turning
from nnunet_alice.importing.report import changed_since_import


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def labels(report):
    return sorted(path.name.removesuffix(".nii.gz") for path in (report.folder / "labelsTr").iterdir())


def unreadable(monkeypatch, *folders):
    """Let these folders refuse to be listed, whoever asks (root may list anything)."""
    scandir = os.scandir

    def refuse(path):
        if str(path) in map(str, folders):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_naming_every_channel_answers_the_new_question(raw, tmp_path):
    for channel in range(3):
        write(tmp_path / "scans" / f"scan_{channel:04d}.nii.gz", volume(channel))
    with refused(InputError, value=1):
        run(tmp_path / "scans", ("T1",))
    assert run(tmp_path / "scans", ("T1", "T2", "PD")).imported == ["scan"]


def test_other_channels_than_those_of_a_finished_import_are_refused_and_nothing_is_lost(raw, scans):
    report = run(scans)
    (raw / "Dataset901_Taken").mkdir()
    before = contents(report.folder)
    for channels in (("CT", "MR"), ("MR",)):
        with pytest.raises(InputError) as refused:
            run(scans, channels)
        assert f"-d 902 -n Test --channel {' '.join(channels)}" in str(refused.value)
        assert contents(report.folder) == before
    assert len(run(scans).read) == 0


def test_voxels_behind_a_header_that_cannot_be_read_now_are_tried_again(raw, tmp_path, monkeypatch):
    for name in "ab":
        write(tmp_path / "scans" / f"{name}.mhd", volume())
    open_file = Path.open

    def refuse(path, *args, **kwargs):
        if path.name.startswith("b.") and path.suffix != ".mhd":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert "Permission denied" in run(tmp_path / "scans").left_out["b"]
    assert run(tmp_path / "scans").imported == ["a", "b"]


@pytest.mark.parametrize("status", ["imported", "left out"])
def test_verdicts_of_other_checks_are_looked_at_again(raw, scans, monkeypatch, status):
    if status == "left out":
        cut(scans / "good.nii.gz")
        write(scans / "other.nii.gz", volume(1))
    report = run(scans)
    assert len(run(scans).read) == 0
    monkeypatch.setattr(cases, "VERSION", cases.VERSION + 1)
    label = report.folder / "labelsTr" / f"{report.imported[0]}.nii.gz"
    written = label.stat().st_mtime_ns
    assert len(run(scans).read) == len(report.cases)
    assert label.stat().st_mtime_ns == written, "a label that says the same stays, or all would be preprocessed again"


def test_a_report_of_an_older_version_is_looked_at_again(raw, scans):
    report = run(scans)
    content = json.loads(report.file.read_text())
    content["cases"]["good"] = {
        key: content["cases"]["good"][key] for key in ("status", "files", "orientation", "shape", "spacing_mm")
    }
    report.file.write_text(json.dumps(content))
    assert len(run(scans).read) == 1


def test_a_changed_image_gets_a_newer_label_though_the_body_is_the_same(raw, scans):
    """Preprocessing goes by times; a file that was replaced by an older one would be taken for the same."""
    report = run(scans)
    label = report.folder / "labelsTr" / "good.nii.gz"
    os.utime(label, (1, 1))
    write(scans / "good.nii.gz", volume() + np.int16(1))
    os.utime(scans / "good.nii.gz", (5, 5))
    assert len(run(scans).read) == 1
    assert label.stat().st_mtime > 5


def test_a_folder_that_cannot_be_listed_is_reported_and_its_cases_stay(raw, tmp_path, monkeypatch, caplog):
    scans = tmp_path / "scans"
    for name in ("open/a", "locked/b", "locked/deep/c"):
        write(scans / f"{name}.nii.gz")
    before = contents(run(scans).folder / "labelsTr")
    unreadable(monkeypatch, scans / "locked")
    report = run(scans)
    assert report.imported == ["locked__b", "locked__deep__c", "open__a"] and not report.gone
    assert list(report.unlistable) == [str(scans / "locked")]
    assert contents(report.folder / "labelsTr") == before
    assert len(json.loads((report.folder / "dataset.json").read_text())["dataset"]) == 3
    assert "could not be listed" in caplog.text and "2 cases imported from it before: kept" in caplog.text
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_raw", str(raw))
    again = run(scans)
    assert len(again.read) == 0 and not again.unlistable and not again.kept


def test_volumes_made_of_dicom_stay_while_a_folder_cannot_be_listed(raw, tmp_path, monkeypatch):
    """They lie in the dataset, so that nothing says in which folder their series is."""
    scans = tmp_path / "scans"
    for name in ("open/a", "locked/b"):
        write(scans / f"{name}.nii.gz")
    report = run(scans)
    content = json.loads(report.file.read_text())
    made = report.folder / "volumes_from_dicom" / "dicom_00001.nii.gz"
    write(made)
    content["cases"]["dicom_00001"] = content["cases"]["open__a"] | {
        "files": [{"path": str(made), "bytes": 1, "modified_ns": 1}]
    }
    report.file.write_text(json.dumps(content))
    unreadable(monkeypatch, scans / "locked")
    assert "dicom_00001" in run(scans).kept
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_raw", str(raw))
    assert run(scans).gone == ["dicom_00001"]


def test_a_link_to_a_disk_that_is_gone_is_a_folder_that_cannot_be_listed(raw, tmp_path):
    write(tmp_path / "disk" / "b.nii.gz")
    write(tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "scans" / "net").symlink_to(tmp_path / "disk")
    run(tmp_path / "scans")
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    report = run(tmp_path / "scans")
    assert report.imported == ["a", "net__b"] and list(report.unlistable) == [str(tmp_path / "scans" / "net")]
    (tmp_path / "scans" / "net").unlink()
    assert run(tmp_path / "scans").imported == ["a"]


def test_a_source_that_cannot_be_listed_is_called_that(raw, scans, monkeypatch):
    report = run(scans)
    before = contents(report.folder)
    unreadable(monkeypatch, scans)
    with refused(InputError, path=scans):
        run(scans)
    assert contents(report.folder) == before


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ESTALE, "Stale")])
def test_a_file_that_cannot_be_read_now_stays_imported(raw, scans, monkeypatch, error):
    write(scans / "other.nii.gz", volume(1))
    run(scans)
    read_case = turning.read_case

    def read(files, *more):
        if files[0].name == "good.nii.gz":
            raise error
        return read_case(files, *more)

    with monkeypatch.context() as patch:
        patch.setattr(turning, "read_case", read)
        patch.setattr(cases, "VERSION", 99)
        report = run(scans)
        assert report.imported == ["good", "other"] and list(report.kept) == ["good"]
        assert labels(report) == ["good", "other"]
    (scans / "new.nii.gz").symlink_to(scans / "nowhere.nii.gz")
    report = run(scans)
    assert not report.kept and list(report.left_out) == ["new"], "what was never imported has nothing to stay"


def test_gone_cases_are_named_before_anything_is_dropped(raw, scans, monkeypatch, caplog):
    write(scans / "other.nii.gz", volume(1))
    report = run(scans)
    (scans / "other.nii.gz").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("nnunet_alice.importing.unlabelled._write_dataset_json", _killed)
        with pytest.raises(KeyboardInterrupt):
            run(scans)
    assert "1 case of the earlier import gone" in caplog.text and labels(report) == ["good", "other"]
    report = run(scans)
    assert report.gone == ["other"] and labels(report) == ["good"]


def _killed(*_):
    raise KeyboardInterrupt


def test_nothing_importable_leaves_the_earlier_import_as_it_is(raw, scans):
    report = run(scans)
    before = contents(report.folder / "labelsTr"), (report.folder / "dataset.json").read_bytes()
    whole = (scans / "good.nii.gz").read_bytes()
    cut(scans / "good.nii.gz")
    with refused(InputError, value=1):
        run(scans)
    assert (contents(report.folder / "labelsTr"), (report.folder / "dataset.json").read_bytes()) == before
    (scans / "good.nii.gz").write_bytes(whole)
    assert run(scans).imported == ["good"]


def test_images_are_turned_by_copies_of_those_that_lie_differently(raw, scans):
    write(scans / "turned.nrrd", volume(1), turn="PIR")
    assert run(scans).imported == ["good", "turned"]
    report = run(scans, orient="LPS")
    assert len(report.read) == 1, "the one that lies so already is not read again"
    dataset = json.loads((report.folder / "dataset.json").read_text())
    assert dataset["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert dataset["dataset"]["good"]["images"] == [str(scans / "good.nii.gz")]
    assert dataset["dataset"]["turned"]["images"] == ["imagesTr/turned_0000.nii.gz"]
    copy = sitk.ReadImage(str(report.folder / "imagesTr" / "turned_0000.nii.gz"))
    label = sitk.ReadImage(str(report.folder / "labelsTr" / "turned.nii.gz"))
    original = sitk.DICOMOrient(sitk.ReadImage(str(scans / "turned.nrrd")), "LPS")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(copy), sitk.GetArrayFromImage(original))
    np.testing.assert_allclose(copy.GetDirection(), np.eye(3).ravel())
    np.testing.assert_allclose(copy.GetOrigin(), original.GetOrigin(), rtol=1e-6)
    assert label.GetSize() == copy.GetSize()
    assert len(run(scans).read) == 0, "the orientation is remembered"
    (scans / "turned.nrrd").unlink()
    assert not list((run(scans).folder / "imagesTr").iterdir())
    with refused(InputError, value="LPR"):
        run(scans, orient="LPR")


def test_images_that_changed_after_the_import_are_known(raw, scans):
    write(scans / "other.nii.gz", volume(1))
    folder = run(scans).folder
    assert changed_since_import(folder) == []
    write(scans / "other.nii.gz", volume(2, shape=(18, 24, 28)))
    assert changed_since_import(folder) == ["other"]
    run(scans)
    assert changed_since_import(folder) == [] and changed_since_import(raw) == []
