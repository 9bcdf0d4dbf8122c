"""Images that lie otherwise than the pretraining's are turned before they are located, by their headers alone."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from support.located import TO_ATLAS, bright_ball, make_atlas, write
from support.small_datasets import set_folders

from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.registration import Registration
from nnunet_alice.cli.main import main
from nnunet_alice.coordinates.atlas_file import PortableAtlas
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

    def register(atlas, case):
        pictures.append(case.image)
        return Registration(TO_ATLAS, 0.9, 0.9)

    monkeypatch.setattr(PortableAtlas, "register", register)
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


#: a bone on the patient's left, in front, near the head: where it is of the body's size along x, y and z (LPS)
BONE = np.array([0.3, -0.25, 0.35])


def one_sided_body(shift_mm=(0.0, 0.0, 0.0), seed=0):
    """A body that lies LPS, whose bone tells left from right, front from back and head from feet."""
    sizes = np.array([56, 48, 40])
    x, y, z = np.meshgrid(
        *(np.arange(n) * s - n * s / 2 for n, s in zip(sizes, (2.5, 2, 3), strict=True)), indexing="ij"
    )
    places = np.stack([x, y, z], axis=-1) - shift_mm
    half = np.array([50.0, 36.0, 46.0])
    values = np.where(((places / half) ** 2).sum(axis=-1) < 1, 40.0, -1000.0)
    values += np.where((((places - BONE * half) / 11) ** 2).sum(axis=-1) < 1, 900, 0)
    values += np.random.default_rng(seed).normal(scale=15, size=values.shape)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T.astype(np.float32)))
    image.SetSpacing((2.5, 2.0, 3.0))
    return image


def bone_of(image):
    """Voxel (z, y, x) in the middle of the bone."""
    return np.argwhere(sitk.GetArrayFromImage(image) > 500).mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("letters", ["LPS", "LAS", "RAS", "PIR"])
@pytest.mark.parametrize("lies", ["LPS", "RAS"])
def test_left_stays_left_by_a_known_truth(tmp_path, lies, letters):
    """The bone has the coordinates of the atlas' bone, registered in earnest, however atlas and image lie."""
    body = sitk.DICOMOrient(one_sided_body(), lies)
    array = sitk.GetArrayFromImage(body)
    spacing = body.GetSpacing()[::-1]
    atlas = atlas_lying(lies)
    atlas.plans["configurations"]["3d_fullres"]["spacing"] = list(spacing)
    atlas = replace(atlas, geometry=compute_geometry("atlas", array[None], spacing))
    expected = 2 * (bone_of(body) + 0.5) / array.shape - 1
    case = sitk.DICOMOrient(one_sided_body((4.0, -3.0, 5.0), seed=1), letters)
    sitk.WriteImage(case, str(tmp_path / "a_0000.nii.gz"))
    cases = [RawCase("a", (tmp_path / "a_0000.nii.gz",))]
    report = locate_cases(atlas, cases, tmp_path / "out", tmp_path / "r.json", 1)
    assert report.outcomes.results["a"]["status"] == "ok"
    weight, *places = (sitk.ReadImage(str(path)) for path in report.coordinates("a"))
    image = sitk.ReadImage(str(report.images("a")[0] if report.turned else tmp_path / "a_0000.nii.gz"))
    there = tuple(np.round(bone_of(image)).astype(int))
    weight, *places = (float(sitk.GetArrayFromImage(channel)[there]) for channel in (weight, *places))
    found = [2 * (place / weight - 1) for place in places]
    np.testing.assert_allclose(found, expected, atol=0.08)
    assert (np.abs(expected) > 0.16).all()  # mirrored it would be far away


def test_images_that_do_not_say_how_they_lie_are_told(tmp_path, seen, capsys):
    write(tmp_path / "in" / "a_0000.gipl", bright_ball(), LPS)
    write(tmp_path / "in" / "b_0000.nii.gz", bright_ball(), LPS)
    report = locate_folder(tmp_path / "in", tmp_path / "out", replace(atlas_lying("LPS"), predicts=".nii.gz"))
    assert list(report.assumed) == ["a"] and "LPS is assumed" in report.assumed["a"]
    assert report.outcomes.results["b"]["assumed"] == ""


def test_what_was_located_of_a_folder_that_cannot_be_listed_now_stays(tmp_path, seen, monkeypatch, caplog):
    atlas = replace(atlas_lying("LPS"), predicts=".nii.gz")
    for place in ("open", "locked"):
        write(tmp_path / "in" / place / "a_0000.nii.gz", bright_ball(), LPS)
    locate_folder(tmp_path / "in", tmp_path / "out", atlas)
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    locked, scandir = str(tmp_path / "in" / "locked"), os.scandir

    def refuse(path):
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", locked)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = locate_folder(tmp_path / "in", tmp_path / "out", atlas)
    assert f"{locked} cannot be listed (Permission denied)" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert report.located == ["locked__a", "open__a"]
    monkeypatch.undo()
    (tmp_path / "in" / "locked" / "a_0000.nii.gz").unlink()
    monkeypatch.setattr(PortableAtlas, "register", lambda atlas, case: Registration(TO_ATLAS, 0.9, 0.9))
    assert locate_folder(tmp_path / "in", tmp_path / "out", atlas).located == ["open__a"]
    assert not list((tmp_path / "out").glob("locked*"))


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_label_that_changed_is_turned_again(labelled, seen):
    made = locate_dataset(4, atlas_lying("LPS"))
    label = labelled / "raw" / "Dataset004_Target" / "labelsTr" / "b.nii.gz"
    lying(write(label, (bright_ball() > 50).astype(np.float32), LPS), "LAS")
    count = len(seen)
    locate_dataset(4, atlas_lying("LPS"))
    assert len(seen) == count + 1
    found = array_of(labelled / "raw" / made.name / "labelsTr" / "b.nii.gz") > 0
    np.testing.assert_array_equal(found, bright_ball() > 50)


def test_images_for_a_model_of_another_ending_are_written_again(tmp_path, seen):
    write(tmp_path / "in" / "a_0000.nii.gz", bright_ball(), LPS)
    for ending in (".nii.gz", ".nrrd"):
        report = locate_folder(tmp_path / "in", tmp_path / "out", replace(atlas_lying("LPS"), predicts=ending))
        written = sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".json")
        assert written == [f"a_000{channel}{ending}" for channel in range(5)] and report.located == ["a"]


@pytest.mark.slow
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
    monkeypatch.setattr(PortableAtlas, "register", lambda atlas, case: Registration(TO_ATLAS, 0.1, 0.5))
    atlas_lying("LPS").save(tmp_path / "atlas.npz")
    write(tmp_path / "in" / "a_0000.nii.gz", bright_ball(), LPS)
    words = ["locate", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main([*words, "--atlas", str(tmp_path / "atlas.npz")]) == 1
    printed = capsys.readouterr().out
    assert "0 cases located" in printed and "No case was located" in printed and "Next" not in printed
