"""How pool and target lie: the pool is read so that both lie alike, or the command is named that turns it."""

import os

import numpy as np
import pytest
import SimpleITK as sitk
from support.planned_datasets import CASES, TARGET, UNLABELLED, plan, write_dataset
from support.raw_volumes import write

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.importing.unlabelled import import_unlabelled
from nnunet_alice.planning.orientations import MIXED, array_orientation, fit_orientation, unlike_pretraining


def lie(raw, *letters):
    """Turn the images and labels of a raw dataset, one orientation a case, in turn."""
    for number, case in enumerate(CASES):
        for name in (f"{case}_0000.nii.gz", f"{case}.nii.gz"):
            image = sitk.ReadImage(str(raw / name))
            sitk.WriteImage(sitk.DICOMOrient(image, letters[number % len(letters)]), str(raw / name))


def dataset(folder, name, *letters, reader=None):
    raw = write_dataset(folder, name)
    lie(raw, *letters)
    if reader:
        write_json(raw / "dataset.json", read_json(raw / "dataset.json") | {"overwrite_image_reader_writer": reader})
    return raw


@pytest.mark.parametrize(
    ("pool", "pool_reader", "target", "target_reader", "reader", "orientation", "note"),
    [
        (["LPS"], None, ["LPS"], "SimpleITKIO", "SimpleITKIO", "LPS", ""),
        (["PIR"], None, ["PIR"], "NibabelIO", "SimpleITKIO", "PIR", ""),
        (["PIR"], None, ["RAS"], "SimpleITKIO", "SimpleITKIOWithReorient", "RAS", "will turn the pool"),
        (["LPS"], None, ["LAI"], "SimpleITKIOWithReorient", "SimpleITKIOWithReorient", "RAS", "will turn the pool"),
        (["LPS"], "NibabelIO", ["LAI"], "NibabelIOWithReorient", "NibabelIOWithReorient", "RAS", "will turn the pool"),
        (["RAS", "LPS"], "SimpleITKIOWithReorient", ["RAS"], "SimpleITKIO", "SimpleITKIOWithReorient", "RAS", ""),
        (["LPS", "RAS"], None, ["LPS"], "SimpleITKIO", "SimpleITKIO", MIXED, "several orientations"),
        (["LPS"], None, ["LPS", "RAS"], "SimpleITKIO", "SimpleITKIO", "LPS", "several orientations"),
    ],
)
def test_pool_is_read_as_the_target_lies(folder, pool, pool_reader, target, target_reader, reader, orientation, note):
    dataset(folder, UNLABELLED, *pool, reader=pool_reader)
    dataset(folder, TARGET, *target)
    fit = fit_orientation(UNLABELLED, TARGET, {"image_reader_writer": target_reader})
    assert (fit.reader, fit.orientation) == (reader, orientation)
    assert note in fit.note and bool(fit.note) is bool(note)


@pytest.mark.parametrize(
    ("pool", "pool_reader", "target"),
    [
        (["PIR"], None, "LPS"),
        (["RAS"], None, "LPS"),
        (["LAS"], None, "LPS"),
        (["LPS", "RAS"], "SimpleITKIOWithReorient", "LPS"),
    ],
)
def test_what_nnunet_cannot_turn_is_refused_by_name(folder, pool, pool_reader, target):
    dataset(folder, UNLABELLED, *pool, reader=pool_reader)
    dataset(folder, TARGET, target)
    with pytest.raises(InputError) as refused:
        fit_orientation(UNLABELLED, TARGET, {"image_reader_writer": "SimpleITKIO"})
    for part in (UNLABELLED, TARGET, f"lies {target}", f"--orient {target}", "SimpleITKIOWithReorient"):
        assert part in str(refused.value)


def test_without_raw_images_of_the_target_it_is_said_that_nothing_was_compared(folder):
    dataset(folder, UNLABELLED, "LPS")
    assert "does not say how it lies" in (
        fit_orientation(UNLABELLED, "Dataset777_Away", {"image_reader_writer": "SimpleITKIO"}).note
    )


def test_headers_are_not_read_again_where_import_noted_them(folder, monkeypatch):
    for number, letters in enumerate(("RAS", "RAS")):
        write(folder / "scans" / f"{number}.nii.gz", turn=letters)
    (folder / "nnUNet_raw").mkdir(exist_ok=True)
    import_unlabelled(folder / "scans", 901, name="Imported", channels=["CT"], num_processes=1)
    monkeypatch.setattr("nnunet_alice.planning.orientations.file_orientation", lambda _: pytest.fail("read"))
    assert array_orientation("Dataset901_Imported", "SimpleITKIO") == "RAS"


def test_a_sagittal_pool_is_refused_before_any_work_and_fits_after_the_named_command(folder, capsys, caplog):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    rng = np.random.default_rng(0)
    for number in range(2):
        write(folder / "scans" / f"{number}.nii.gz", rng.normal(100, 20, (24, 28, 32)).astype(np.float32), turn="PIR")
    (folder / "nnUNet_raw").mkdir()
    import_unlabelled(folder / "scans", 900, name="Unlabelled", channels=["CT"], num_processes=1)
    write_dataset(folder, TARGET)
    ExperimentPlanner(TARGET).plan_experiment()
    assert plan("--target", "4") == 1
    error = capsys.readouterr().err
    assert "lies PIR" in error and f"-i {folder / 'scans'} -d 900 -n Unlabelled --channel CT --orient LPS" in error
    assert not (folder / "nnUNet_preprocessed" / UNLABELLED / "dataset_fingerprint.json").exists()
    import_unlabelled(folder / "scans", 900, name="Unlabelled", channels=["CT"], num_processes=1, orient="LPS")
    assert plan("--target", "4") == 0 and "changed since import" not in caplog.text
    os.utime(folder / "scans" / "0.nii.gz", (1, 1))
    assert plan("--target", "4") == 0 and "1 case changed since import (0)" in caplog.text
    moved = read_json(folder / "nnUNet_preprocessed" / UNLABELLED / "nnUNetPlans_from004.json")
    assert (moved["orientation"], moved["image_reader_writer"]) == ("LPS", "SimpleITKIO")


def test_axes_of_the_fingerprint_follow_the_reader(folder):
    """A pool of PIR whose target is RAS: views are sized by the axes that the turning reader gives."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    (folder / "nnUNet_raw").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):  # (z, y, x) = (16, 40, 64) in the body's axes
        write(
            folder / "scans" / f"{number}.nii.gz", rng.normal(100, 20, (16, 40, 64)).astype(np.float32),
            spacing=(1.0, 1.0, 1.0), turn="PIR",
        )  # fmt: skip
    import_unlabelled(folder / "scans", 900, name="Unlabelled", channels=["CT"], num_processes=1)
    lie(write_dataset(folder, TARGET), "RAS")
    ExperimentPlanner(TARGET).plan_experiment()
    path = folder / "nnUNet_preprocessed" / TARGET / "nnUNetPlans.json"
    content = read_json(path)
    content["configurations"]["3d_fullres"]["patch_size"] = [64, 64, 64]
    content["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    write_json(path, content)
    assert plan("--target", "4") == 0
    moved = read_json(folder / "nnUNet_preprocessed" / UNLABELLED / "nnUNetPlans_from004.json")
    patch = moved["configurations"]["3d_fullres"]["patch_size"]
    assert patch == sorted(patch) and patch[0] < patch[2], "short along z, long along x"
    from nnunet_alice.dataset import PreprocessedDataset

    prepared = PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres")
    assert prepared.shape(prepared.cases()[0]) == (16, 40, 64)


@pytest.mark.parametrize(
    ("trained", "reader", "said"),
    [
        ("LPS", "SimpleITKIO", False),
        ("LAS", "SimpleITKIO", True),
        ("RAS", "SimpleITKIOWithReorient", False),
        ("LPS", "SimpleITKIOWithReorient", True),
        ("", "SimpleITKIO", False),
        (MIXED, "SimpleITKIO", False),
    ],
)
def test_a_target_that_lies_unlike_the_pretraining_is_told(folder, trained, reader, said):
    dataset(folder, TARGET, "LPS")
    assert bool(unlike_pretraining(trained, TARGET, reader)) is said


def test_where_no_raw_images_are_nothing_is_told(folder, monkeypatch):
    assert not unlike_pretraining("LAS", TARGET, "SimpleITKIO")
    monkeypatch.delenv("nnUNet_raw")
    assert not unlike_pretraining("LAS", TARGET, "SimpleITKIO")
