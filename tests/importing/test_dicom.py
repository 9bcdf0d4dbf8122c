"""DICOM in: series become volumes with the right values at the right places, or are left out with the reason."""

import csv
import errno
import json
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("pydicom")
from pydicom import dcmread
from pydicom.uid import MPEG4HP41, JPEG2000Lossless, RLELossless
from support.dicom_files import volume, write_series
from support.refused import refused

from nnunet_alice.errors import InputError, OccupiedError
from nnunet_alice.importing.dicom_names import NameTable
from nnunet_alice.importing.unlabelled import import_unlabelled
from nnunet_alice.parts import Part

DATASET = "Dataset900_Test"


@pytest.fixture
def scans(tmp_path):
    """A good series, so that something can be imported."""
    write_series(tmp_path / "scans" / "Smith" / "good", volume(1))
    return tmp_path / "scans"


def run(scans, channels=("CT",), **options):
    return import_unlabelled(scans, 900, name="Test", channels=channels, num_processes=1, **options)


def table(raw) -> dict[str, dict]:
    with (raw / "private" / f"{DATASET}_dicom.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def reason(scans, raw, folder="bad") -> str:
    """Why the series in a folder was left out."""
    report = run(scans)
    case = next(case for case, row in table(raw).items() if row["folder"].endswith(folder))
    assert set(report.left_out) == {case} and len(report.imported) == 1
    return report.left_out[case]


def read(raw, case):
    return sitk.ReadImage(str(raw / DATASET / "volumes_from_dicom" / f"{case}.nii.gz"))


def test_values_places_and_names(raw, scans):
    report = run(scans)
    assert report.imported == ["dicom_00001"]
    image = read(raw, "dicom_00001")
    assert np.array_equal(sitk.GetArrayFromImage(image), volume(1) - 1024) and image.GetPixelID() == sitk.sitkInt16
    assert np.allclose(image.GetSpacing(), (1.5, 1.5, 2.5)) and np.allclose(image.GetOrigin(), (-10, -20, 30))
    dataset = json.loads((raw / DATASET / "dataset.json").read_text())
    assert dataset["dataset"]["dicom_00001"]["images"] == [str(raw / DATASET / "volumes_from_dicom/dicom_00001.nii.gz")]
    row = table(raw)["dicom_00001"]
    assert (row["patient"], row["description"], row["modality"], row["slices"]) == ("4711", "Chest 2.5", "CT", "8")


def test_nothing_in_the_dataset_names_the_patient(raw, scans):
    write_series(scans / "Smith" / "bad", Modality="SR")
    run(scans)
    names = b" ".join(str(path).encode() for path in (raw / DATASET).rglob("*"))
    texts = b" ".join(path.read_bytes() for path in (raw / DATASET).rglob("*.json"))
    for secret in (b"4711", b"Smith^John", b"Smith/", b"20260102"):
        assert secret not in names + texts, secret
    path = raw / "private" / f"{DATASET}_dicom.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, 0, 0, -1)],
    ids=["axial", "coronal", "sagittal", "oblique"],
)
def test_any_orientation(raw, tmp_path, orientation):
    """The voxel of a slice's own numbers lies where the slice says, whatever the order of slices."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal, start = np.cross(row, column), np.array([5.0, 6.0, 7.0])
    stored = volume(2)
    write_series(
        tmp_path / "scans",
        stored[::-1],  # the last slice first
        ImageOrientationPatient=list(orientation),
        PixelSpacing=[1.25, 1.5],  # rows 1.25 mm apart, columns 1.5 mm
        position=lambda z: (start + 3.0 * (len(stored) - 1 - z) * normal).tolist(),
    )
    run(tmp_path / "scans")
    image = read(raw, "dicom_00001")
    x, y, z = 7, 4, 2
    assert image.GetPixel(x, y, z) == stored[z, y, x] - 1024
    there = start + 1.5 * x * row + 1.25 * y * column + 3.0 * z * normal
    assert np.allclose(image.TransformIndexToPhysicalPoint((x, y, z)), there, atol=1e-4)


@pytest.mark.parametrize("modality", ["CT", "PT", "MR"])
def test_slope_and_intercept_of_each_slice(raw, tmp_path, modality):
    write_series(
        tmp_path / "scans", Modality=modality, RescaleSlope=lambda z: 1 + 0.5 * z, RescaleIntercept=lambda z: -z
    )
    run(tmp_path / "scans", channels=("CT" if modality == "CT" else "X",))
    expected = volume() * (1 + 0.5 * np.arange(8))[:, None, None] - np.arange(8)[:, None, None]
    assert np.allclose(sitk.GetArrayFromImage(read(raw, "dicom_00001")), expected)


def lacking(missing):
    return lambda z: [-10.0, -20.0, 30 + 2.5 * (z + (z >= missing) * 2)]


def tilted(z):
    return [-10.0, -20.0 + 2.5 * np.tan(np.radians(15)) * z, 30 + 2.5 * z]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"position": lacking(3)},
            r"lacks about 2 slices: between 35\.0 and 42\.5 mm, where others are 2\.50 mm apart",
        ),
        ({"position": tilted}, r"gantry tilt of 15\.0 degrees"),
        ({"position": lambda z: [-10, -20, 30 + 2.5 * z + 0.6 * (z % 2)]}, r"lie 1\.90 to 3\.10 mm apart"),
        ({"position": lambda z: [-10 + 9 * (z == 4), -20, 30 + 2.5 * z]}, "shifted against each other"),
        (
            {"position": lambda z: [-10, -20, 30 + 2.5 * (z // 2)], "EchoTime": lambda z: 10 + 10 * (z % 2)},
            r"up to 2 slices at one place, at 4 of 4 places \(they differ in echo time: several volumes",
        ),
        ({"position": lambda z: [-10, -20, 30 + 2.5 * min(z, 6)]}, r"at 1 of 7 places \(doubled slices\)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, r"localiser \(ORIGINAL\\PRIMARY\\LOCALIZER\)"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, r"derived .*--derived takes it"),
        ({"Modality": "MR"}, "is MR, and the channel is CT"),
        ({"Modality": "SR"}, "SR"),
        ({"ImagePositionPatient": lambda z: None if z == 2 else [0, 0, z]}, "does not tell the position of 1 slice"),
        ({"PixelSpacing": None}, "voxel size of 8 slices"),
        ({"PixelSpacing": lambda z: [1.5, 1.5 + (z > 4)]}, "different voxel sizes"),
        ({"ImageOrientationPatient": lambda z: [1, 0, 0, 0, 1, 0] if z < 4 else [0, 1, 0, 0, 0, -1]}, "2 directions"),
        ({"NumberOfFrames": 4}, "many frames"),
    ],
)
def test_what_makes_no_volume_is_told(raw, scans, changes, said):
    write_series(scans / "bad", **changes)
    text = reason(scans, raw)
    assert re.search(said, text), text
    assert "\n" not in text and "IM0" not in text


def test_too_few_slices(raw, scans):
    write_series(scans / "bad", volume(shape=(3, 20, 24)))
    assert "holds 3 slices" in reason(scans, raw)


def test_derived_series_are_taken_if_asked_for(raw, scans):
    write_series(scans / "reformat", ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert len(run(scans).imported) == 1
    assert len(run(scans, derived=True).imported) == 2


def test_two_series_in_one_folder_and_one_in_two(raw, scans):
    write_series(scans / "mixed", volume(2), SeriesDescription="a")
    for path in (scans / "mixed").iterdir():
        path.rename(path.with_name(f"a{path.name}"))
    files = write_series(scans / "mixed", volume(3), SeriesDescription="b")
    (scans / "elsewhere").mkdir()
    files[0].rename(scans / "elsewhere" / "IM0000")
    report = run(scans)
    assert len(report.imported) == 3 and not report.left_out
    by_description = {row["description"]: case for case, row in table(raw).items()}
    for description, seed in (("a", 2), ("b", 3)):
        assert np.array_equal(sitk.GetArrayFromImage(read(raw, by_description[description])), volume(seed) - 1024)


def test_copies_of_a_slice_count_once(raw, scans):
    files = write_series(scans / "twice", volume(2))
    for path in files[:5]:
        shutil.copy(path, path.with_name(f"{path.name}_copy.dcm"))
    assert len(run(scans).imported) == 2


def test_compressed_slices_that_can_be_decoded(raw, tmp_path):
    for path in write_series(tmp_path / "scans", volume(4)):
        dataset = dcmread(path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    run(tmp_path / "scans")
    assert np.array_equal(sitk.GetArrayFromImage(read(raw, "dicom_00001")), volume(4) - 1024)


def test_compressed_slices_that_cannot_be_decoded(raw, scans):
    write_series(scans / "bad", syntax=MPEG4HP41)
    assert "compressed as MPEG-4" in reason(scans, raw)


def test_damaged_compressed_slices(raw, scans):
    write_series(scans / "bad", syntax=JPEG2000Lossless)
    assert "compressed as JPEG 2000" in reason(scans, raw)


def test_a_truncated_slice(raw, scans):
    path = write_series(scans / "bad")[3]
    path.write_bytes(path.read_bytes()[:-500])
    assert "slice 4 is truncated or damaged" in reason(scans, raw)


def test_other_files_among_them_do_not_matter(raw, scans):
    good = scans / "Smith" / "good"
    (good / "notes.txt").write_text("text")
    (good / "broken.dcm").write_bytes(b"no DICOM at all")
    (good / "empty.dcm").touch()
    (good / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert run(scans).imported == ["dicom_00001"]


def test_nifti_beside_dicom(raw, scans):
    image = sitk.GetImageFromArray(volume(5) - 1024)
    image.SetSpacing((1.5, 1.5, 2.5))
    sitk.WriteImage(image, str(scans / "plain.nii.gz"))
    sitk.WriteImage(image, str(scans / "dicom_00001.nii.gz"))  # takes the name
    assert run(scans).imported == ["dicom_00001", "dicom_00002", "plain"]
    assert read(raw, "dicom_00002").GetOrigin() == (-10, -20, 30)


def test_only_what_is_new_is_read_and_names_stay(raw, scans):
    write_series(scans / "bad", Modality="SR")
    assert len(run(scans).read) == 1
    before = table(raw)
    converted = raw / DATASET / "volumes_from_dicom" / "dicom_00001.nii.gz"
    if before["dicom_00001"]["problem"]:
        converted = converted.with_name("dicom_00002.nii.gz")
    written = converted.stat().st_mtime_ns
    assert len(run(scans).read) == 0 and converted.stat().st_mtime_ns == written and table(raw) == before
    write_series(scans / "new", volume(7), SeriesInstanceUID="1.2")  # sorts before the others
    report = run(scans)
    assert len(report.read) == 1 and len(report.imported) == 2
    assert {case: row["series"] for case, row in table(raw).items() if case in before} == {
        case: row["series"] for case, row in before.items()
    }
    assert table(raw)["dicom_00003"]["series"] == "1.2"


def test_a_series_that_was_mended_is_read_again(raw, scans):
    path = write_series(scans / "bad", PixelSpacing=lambda z: [1.5, 1.5 + (z > 4)], SeriesInstanceUID="1.5")[0]
    assert "different voxel sizes" in reason(scans, raw)
    shutil.rmtree(path.parent)
    write_series(path.parent, SeriesInstanceUID="1.5")
    assert len(run(scans).imported) == 2


def test_a_series_that_is_gone_leaves_the_dataset(raw, scans, caplog):
    write_series(scans / "more", volume(3))
    assert len(run(scans).imported) == 2
    shutil.rmtree(scans / "more")
    report = run(scans)
    assert len(report.imported) == 1 and "delete them" in caplog.text


@pytest.mark.parametrize("which", [slice(0, 1), slice(3, 4), slice(None)], ids=["the first", "one", "all"])
def test_a_file_that_cannot_be_read_now_costs_nothing(raw, scans, monkeypatch, which):
    """It may belong to any series: the others would seem whole, and its own gone."""
    sitk.WriteImage(sitk.GetImageFromArray(volume(5) - 1024), str(scans / "plain.nii.gz"))
    assert len(run(scans).imported) == 2
    folder, open_file = scans / "Smith" / "good", Path.open
    away = sorted(folder.iterdir())[which]

    def fail(path, *args, **kwargs):
        if path in away:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return open_file(path, *args, **kwargs)

    labels = sorted((raw / DATASET / "labelsTr").iterdir())
    with monkeypatch.context() as patch, refused(InputError, path=folder):
        patch.setattr(Path, "open", fail)
        run(scans)
    assert sorted((raw / DATASET / "labelsTr").iterdir()) == labels
    again = run(scans)
    assert not again.read and len(again.imported) == 2


def test_parts_of_dicom_are_refused(raw, scans):
    """Every part would convert all series, and name them as if there were no others."""
    with refused(InputError, path=scans, option="--part"):
        run(scans, part=Part(1, 2))
    assert not (raw / "private").exists()


def test_several_channels_are_not_made_of_dicom(raw, scans, caplog):
    image = sitk.GetImageFromArray(volume(5))
    for number in range(2):
        sitk.WriteImage(image, str(scans / f"case_{number:04d}.nii.gz"))
    report = run(scans, channels=("T1", "T2"))
    assert report.imported == ["case"] and "one --channel at a time" in caplog.text


def test_without_pydicom_they_are_named_with_what_to_install(raw, scans, caplog, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sitk.WriteImage(sitk.GetImageFromArray(volume(5) - 1024), str(scans / "plain.nii.gz"))
    assert run(scans).imported == ["plain"] and "nnunet_alice[dicom]" in caplog.text


def test_series_of_an_earlier_import_stay_where_pydicom_is_missing(raw, scans, monkeypatch):
    sitk.WriteImage(sitk.GetImageFromArray(volume(5) - 1024), str(scans / "plain.nii.gz"))
    before = run(scans).imported
    with monkeypatch.context() as patch, refused(InputError, path=raw / DATASET, command="pip install"):
        patch.setattr("importlib.util.find_spec", lambda name: None)
        run(scans)
    assert run(scans).imported == before


def test_a_table_of_something_else_is_not_overwritten(raw, scans):
    path = raw / "private" / f"{DATASET}_dicom.csv"
    path.parent.mkdir()
    path.write_text("name,age\nx,3\n")
    with refused(OccupiedError, path=path):
        run(scans)
    assert path.read_text() == "name,age\nx,3\n"


def test_names_are_numbers_in_the_order_of_arrival(tmp_path):
    names = NameTable(tmp_path / "t.csv")
    names.name_all(["b", "a"], ["dicom_00002"])
    assert {uid: row["case"] for uid, row in names.rows.items()} == {"a": "dicom_00001", "b": "dicom_00003"}
    names.save()
    again = NameTable(tmp_path / "t.csv")
    again.name_all(["0", "a", "b"], [])
    assert again.rows["0"]["case"] == "dicom_00002" and again.rows["a"]["case"] == "dicom_00001"
