"""Images that lie otherwise than the pretraining's are turned before they are located, by their headers alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from support.small_datasets import set_folders
from test_locating import TO_ATLAS, bright_ball, make_atlas, write

from nnunet_alice.anatomy.registration import Registration
from nnunet_alice.cli.main import main
from nnunet_alice.coordinates import locating
from nnunet_alice.coordinates.located_dataset import locate_dataset, locate_folder
from nnunet_alice.coordinates.locating import RawCase, locate_cases

LPS = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def atlas_lying(letters: str, **plans):
    atlas = make_atlas()
    return replace(atlas, plans={**atlas.plans, "orientation": letters, **plans})


@pytest.fixture
def seen(monkeypatch):
    """What was registered: pictures of the cases, in their order."""
    pictures = []

    def register(region, case, atlas):
        pictures.append(case.image)
        return Registration(TO_ATLAS, 0.9, 0.9)

    monkeypatch.setattr(locating, "register_by", register)
    return pictures


def lying(path, letters):
    """The same places in the world, stored in another orientation."""
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), letters), str(path))
    return path


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def letters_of(path):
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(sitk.ReadImage(str(path)).GetDirection())


@pytest.mark.parametrize("letters", ["LAS", "RAS", "PIR"])
def test_a_turned_image_is_registered_and_located_as_the_one_that_lies_right(tmp_path, seen, letters):
    right = write(tmp_path / "in" / "right_0000.nii.gz", bright_ball(), LPS)
    turned = lying(write(tmp_path / "in" / "turned_0000.nii.gz", bright_ball(), LPS), letters)
    cases = [RawCase("right", (right,)), RawCase("turned", (turned,))]
    report = locate_cases(atlas_lying("LPS"), cases, tmp_path / "out", tmp_path / "r.json", 1)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert report.turned == {"turned": f"turned_0000.nii.gz: turned from {letters} to LPS"}
    (copy,) = report.images("turned")
    assert letters_of(copy) == "LPS" and not report.images("right")
    np.testing.assert_array_equal(array_of(copy), array_of(right))
    for one, other in zip(report.coordinates("right"), report.coordinates("turned"), strict=True):
        np.testing.assert_array_equal(array_of(one), array_of(other))


def test_where_nnunet_turns_to_ras_itself_nothing_is_copied(tmp_path, seen):
    """A pool of RAS images read as they lie: new ones are read by the reader that turns."""
    right = lying(write(tmp_path / "in" / "right_0000.nii.gz", bright_ball(), LPS), "RAS")
    other = write(tmp_path / "in" / "other_0000.nii.gz", bright_ball(), LPS)
    cases = [RawCase("right", (right,)), RawCase("other", (other,))]
    report = locate_cases(atlas_lying("RAS"), cases, tmp_path / "out", tmp_path / "r.json", 1)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not report.turned
    weights, *places = (array_of(path).astype(float) for path in report.coordinates("right"))
    turned = (sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS") for path in report.coordinates("other"))
    other_weights, *other_places = (sitk.GetArrayFromImage(image).astype(float) for image in turned)
    inside = weights > 0  # how heavy a voxel counts follows from its place in the file
    np.testing.assert_array_equal(inside, other_weights > 0)
    for one, two in zip(places, other_places, strict=True):
        np.testing.assert_allclose(one[inside] / weights[inside], two[inside] / other_weights[inside], atol=1e-3)


def test_an_atlas_that_does_not_say_how_it_lies_takes_images_as_they_are(tmp_path, seen):
    image = lying(write(tmp_path / "in" / "a_0000.nii.gz", bright_ball(), LPS), "LAS")
    report = locate_cases(make_atlas(), [RawCase("a", (image,))], tmp_path / "out", tmp_path / "r.json", 1)
    assert not report.turned and report.located == ["a"]


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """A raw dataset with one case that lies LPS and one that lies LAS, and a split that names a third."""
    set_folders(monkeypatch, tmp_path)
    raw = tmp_path / "raw" / "Dataset004_Target"
    for case, letters in (("a", "LPS"), ("b", "LAS")):
        label = (bright_ball() > 0).astype(np.float32)
        lying(write(raw / "imagesTr" / f"{case}_0000.nii.gz", bright_ball(), LPS), letters)
        lying(write(raw / "labelsTr" / f"{case}.nii.gz", label, LPS), letters)
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content | {"numTraining": 2}))
    base = tmp_path / "preprocessed" / raw.name
    base.mkdir(parents=True)
    (base / "splits_final.json").write_text(json.dumps([{"train": ["a", "gone"], "val": ["b"]}]))
    return tmp_path


def test_a_located_dataset_has_turned_images_and_labels(labelled, seen, caplog):
    made = locate_dataset(4, atlas_lying("LPS"))
    folder = labelled / "raw" / made.name
    content = json.loads((folder / "dataset.json").read_text())
    assert content["dataset"]["a"]["images"][0].endswith("Dataset004_Target/imagesTr/a_0000.nii.gz")
    assert content["dataset"]["b"]["images"][0] == "imagesTr/b_0000.nii.gz"
    assert content["dataset"]["b"]["label"] == "labelsTr/b.nii.gz"
    for part in ("imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"):
        assert letters_of(folder / part) == "LPS"
    np.testing.assert_array_equal(array_of(folder / "labelsTr" / "b.nii.gz") > 0, bright_ball() > 0)
    folds = json.loads((labelled / "preprocessed" / made.name / "splits_final.json").read_text())
    assert folds == [{"train": ["a"], "val": ["b"]}]
    assert "names 1 case that the dataset does not have (gone)" in caplog.text


def test_a_located_dataset_is_read_by_the_reader_that_turns_where_the_atlas_lies_ras(labelled, seen):
    made = locate_dataset(4, atlas_lying("RAS"))
    content = json.loads((labelled / "raw" / made.name / "dataset.json").read_text())
    plans = json.loads((labelled / "preprocessed" / made.name / f"{made.plans_name}.json").read_text())
    assert content["overwrite_image_reader_writer"] == plans["image_reader_writer"] == "SimpleITKIOWithReorient"
    assert not made.report.turned and plans["orientation"] == "RAS"


def test_new_images_of_any_format_become_the_kind_that_the_model_predicts(tmp_path, seen, caplog):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a_0000.nii.gz", "b_0000.nrrd", "c_0000.nii.gz", "d.mha"):
        write(source / name, bright_ball(), LPS)
    (source / "c_0000.nii.gz").rename(source / "c_0000.NII.GZ")
    (source / "scan.dcm").write_bytes(b"x")
    report = locate_folder(source, output, replace(atlas_lying("LPS"), predicts=".nii.gz"))
    assert report.located == ["a", "b", "c", "d"]
    written = sorted(path.name for path in output.iterdir() if path.suffix == ".gz")
    assert written == [f"{case}_000{channel}.nii.gz" for case in "abcd" for channel in range(5)]
    assert [case for case in "abcd" if (output / f"{case}_0000.nii.gz").is_symlink()] == ["a", "c"]
    np.testing.assert_array_equal(array_of(output / "b_0000.nii.gz"), bright_ball())
    assert "Passed over: 1 .dcm file (scan.dcm): DICOM" in caplog.text
    times = {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    locate_folder(source, output, replace(atlas_lying("LPS"), predicts=".nii.gz"))
    assert times == {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}


def test_nothing_located_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locating, "register_by", lambda region, case, atlas: Registration(TO_ATLAS, 0.1, 0.5))
    atlas_lying("LPS").save(tmp_path / "atlas.npz")
    write(tmp_path / "in" / "a_0000.nii.gz", bright_ball(), LPS)
    words = ["locate", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main([*words, "--atlas", str(tmp_path / "atlas.npz")]) == 1
    printed = capsys.readouterr().out
    assert "0 cases located" in printed and "No case was located" in printed and "Next" not in printed
