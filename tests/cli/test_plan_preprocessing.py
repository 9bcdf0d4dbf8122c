"""`plan` preprocesses: as nnU-Net does, only what is missing or changed, whatever is killed or damaged."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from support.planned_datasets import CASES, TARGET, UNLABELLED, plan, write_image

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.files import read_json, write_json
from nnunet_alice.locks import held
from nnunet_alice.parallel import for_each_case
from nnunet_alice.planning import preprocessing
from nnunet_alice.planning.compact import rounded


def mtimes(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_preprocessed_cases_equal_nnunets_own(datasets, capsys):
    assert plan("--target", "4") == 0
    found = PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres")
    assert found.cases() == list(CASES)
    assert "(3 now, 0 before), 0 failed" in capsys.readouterr().out
    manager = PlansManager(str(datasets / UNLABELLED / "nnUNetPlans_from004.json"))
    preprocessor = found.configuration_manager.preprocessor_class(verbose=False)
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    expected, _, _ = preprocessor.run_case(
        [str(raw / "b_0000.nii.gz")],
        str(raw / "b.nii.gz"),
        manager,
        found.configuration_manager,
        read_json(raw / "dataset.json"),
    )
    np.testing.assert_array_equal(found.image("b")[...], expected)
    for case in CASES:  # what stock trainers validate against
        copy = datasets / UNLABELLED / "gt_segmentations" / f"{case}.nii.gz"
        assert copy.read_bytes() == (raw / f"{case}.nii.gz").read_bytes()
    # The statistics are the target's: 154 is its upper percentile, the unlabelled data's would be 152.
    assert expected.max() == pytest.approx((154 - 100) / 20)


def test_compact_images_are_nnunets_own_rounded(datasets):
    assert plan("--target", "4") == 0
    dataset = PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres")
    own = {case: dataset.image(case)[...] for case in CASES}
    (dataset.folder / "b.b2nd").unlink()
    assert plan("--target", "4", "--compact") == 0
    assert np.array_equal(dataset.image("a")[...], own["a"])  # was there, and stays
    assert np.array_equal(dataset.image("b")[...], rounded(own["b"]))


def test_running_again_does_only_what_is_missing_or_changed(datasets, capsys, caplog):
    assert plan("--target", "4") == 0
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    folder = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres"
    before = mtimes(folder)
    assert plan("--target", "4") == 0
    assert mtimes(folder) == before
    assert "Preprocessing: 3 of 3 cases were done before" in caplog.text
    capsys.readouterr()

    (folder / "a.b2nd").unlink()  # as if killed before the case was whole
    shape = sitk.ReadImage(str(raw / "b.nii.gz")).GetSize()[::-1]
    image = np.where(np.arange(shape[2]) < 5, 60, 140) * np.ones(shape)
    write_image(raw / "b_0000.nii.gz", image.astype(np.float32))
    os.utime(raw / "b_0000.nii.gz", (folder.stat().st_mtime + 10,) * 2)
    content = read_json(raw / "dataset.json")
    del content["dataset"]["c"]
    write_json(raw / "dataset.json", content)
    fingerprint = datasets / UNLABELLED / "dataset_fingerprint.json"
    shapes = read_json(fingerprint)["shapes_after_crop"][:2]
    write_json(fingerprint, read_json(fingerprint) | {"spacings": [(1, 1, 1)] * 2, "shapes_after_crop": shapes})
    untouched = (folder / "a.pkl").stat().st_mtime_ns
    assert plan("--target", "4") == 0
    assert sorted(path.name for path in folder.glob("*.b2nd")) == ["a.b2nd", "a_seg.b2nd", "b.b2nd", "b_seg.b2nd"]
    assert untouched != (folder / "a.pkl").stat().st_mtime_ns
    image = PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").image("b")
    assert len(np.unique(image[...])) == 2
    assert "2 now, 0 before" in capsys.readouterr().out


def test_parts_preprocess_all_cases_and_a_last_run_finds_them(datasets, capsys, caplog):
    assert plan("--target", "4", "--part", "1/2") == 1
    assert "nnUNetPlans_from004 yet: run the same with --no_preprocess" in capsys.readouterr().err
    assert plan("--target", "4", "--no_preprocess") == 0
    for number, cases in ((1, 2), (2, 1)):
        capsys.readouterr()
        assert plan("--target", "4", "--part", f"{number}/2") == 0
        shown = capsys.readouterr().out
        assert f"{cases} now, 0 before" in shown and "run the same without --part" in shown
    assert plan("--target", "4") == 0
    assert "Preprocessing: 3 of 3 cases were done before" in caplog.text


def test_parts_take_the_plans_that_are_there(datasets):
    """Planning again would give the plans of the others for a moment, without the window."""
    assert plan("--window", "-100", "240", "--no_preprocess") == 0
    before = mtimes(datasets / UNLABELLED)
    assert plan("--window", "-100", "240", "--part", "1/1") == 0
    assert mtimes(datasets / UNLABELLED).items() >= before.items()
    assert PreprocessedDataset.find(900, "AlicePlans", "3d_fullres").cases() == list(CASES)


def test_plans_that_change_during_the_work_do_not_reach_it(datasets, monkeypatch):
    assert plan("--target", "4") == 0
    dataset = PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres")
    expected = dataset.image("a").shape
    (dataset.folder / "a.b2nd").unlink()

    def change_plans(*args, **kwargs):
        changed = read_json(dataset.base / "nnUNetPlans_from004.json")
        changed["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
        write_json(dataset.base / "nnUNetPlans_from004.json", changed)
        return for_each_case(*args, **kwargs)

    monkeypatch.setattr(preprocessing, "for_each_case", change_plans)
    assert plan("--target", "4", "--part", "1/1") == 0
    assert dataset.image("a").shape == expected


def test_runs_that_start_together_after_other_plans_empty_the_folder_once(datasets, monkeypatch):
    assert plan("--window", "-100", "240") == 0
    assert plan("--window", "-50", "200", "--no_preprocess") == 0
    folder = datasets / UNLABELLED / "AlicePlans_3d_fullres"
    statuses, waits = [], threading.Event()
    other = threading.Thread(target=lambda: statuses.append(plan("--part", "1/2")))
    lock, empty = preprocessing.held, preprocessing.invalidate_all

    def noting_who_waits(path, wait=False):
        if threading.current_thread() is other and path.parent == folder.parent:
            waits.set()
        return lock(path, wait)

    def let_the_other_start(dataset):
        monkeypatch.setattr(preprocessing, "invalidate_all", empty)
        other.start()
        while other.is_alive() and not waits.is_set():
            other.join(0.01)
        empty(dataset)

    monkeypatch.setattr(preprocessing, "held", noting_who_waits)
    monkeypatch.setattr(preprocessing, "invalidate_all", let_the_other_start)
    statuses.append(plan("--part", "2/2"))
    other.join()
    assert statuses == [0, 0]
    assert PreprocessedDataset.find(900, "AlicePlans", "3d_fullres").cases() == list(CASES)


def test_other_plans_start_anew_and_say_so(datasets, caplog):
    assert plan("--target", "4") == 0
    folder = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres"
    before = mtimes(folder)
    path = datasets / TARGET / "nnUNetPlans.json"
    target = read_json(path)
    target["foreground_intensity_properties_per_channel"]["0"]["percentile_99_5"] = 120.0
    write_json(path, target)
    assert plan("--target", "4") == 0
    assert "preprocessed again: it was made by other plans" in caplog.text
    after = mtimes(folder)
    assert set(after) == set(before) and all(after[name] != before[name] for name in before)


def anatomy_files(datasets) -> list:
    """Files of all cases as ``anatomy`` leaves them, empty; the atlas is b."""
    anatomy = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres_anatomy"
    places = [(anatomy / "cases", ".npz"), (anatomy / "atlas" / "cases", ".json"), (anatomy / "embedding", ".npz")]
    files = [folder / f"{case}{suffix}" for folder, suffix in places for case in CASES]
    write_json(anatomy / "atlas" / "atlas.json", {"atlas_case": "b"})
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return [*files, anatomy / "atlas" / "atlas.json"]


@pytest.mark.slow
def test_what_is_known_of_a_case_goes_with_its_preprocessed_image(datasets):
    assert plan("--target", "4") == 0
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    files = anatomy_files(datasets)
    assert plan("--target", "4") == 0
    assert all(path.is_file() for path in files)  # nothing was preprocessed

    image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "a_0000.nii.gz")))
    write_image(raw / "a_0000.nii.gz", image[:, ::-1].copy())
    os.utime(raw / "a_0000.nii.gz", (files[0].stat().st_mtime + 10,) * 2)
    assert plan("--target", "4") == 0
    assert [path for path in files if not path.is_file()] == [path for path in files if path.stem == "a"]

    content = read_json(raw / "dataset.json")
    del content["dataset"]["b"]
    write_json(raw / "dataset.json", content)
    fingerprint = datasets / UNLABELLED / "dataset_fingerprint.json"
    known = read_json(fingerprint)
    write_json(fingerprint, known | {name: known[name][:2] for name in ("spacings", "shapes_after_crop")})
    assert plan("--target", "4") == 0
    assert {path.stem for path in files if path.is_file()} == {"c"}  # the atlas was b


def test_what_is_known_of_all_cases_goes_when_all_are_preprocessed_anew(datasets):
    assert plan("--target", "4") == 0
    files = anatomy_files(datasets)
    report = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres_preprocessing.json"
    write_json(report, {"recipe": {**read_json(report)["recipe"], "image_reader_writer": "NibabelIOWithReorient"}})
    assert plan("--target", "4") == 0
    assert not any(path.is_file() for path in files)


def test_a_bad_case_is_named_and_stops_no_other(datasets, capsys, caplog):
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    (raw / "b_0000.nii.gz").write_bytes(b"not an image")
    assert plan("--target", "4") == SOME_FAILED
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == ["a", "c"]
    assert "Preprocessing: case b failed" in caplog.text
    report = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres_preprocessing.json"
    assert list(read_json(report)["failed"]) == ["b"]
    for case in ("a", "c"):
        (raw / f"{case}.nii.gz").write_bytes(b"not an image")
    assert plan("--target", "4") == 1
    assert "Fewer than two cases of Dataset900_Unlabelled can be read" in capsys.readouterr().err


def test_a_case_that_is_constant_after_normalisation_is_left_out_by_name(datasets, caplog):
    """Values far from those of the target's plans: all are clipped to one."""
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "b_0000.nii.gz")))
    write_image(raw / "b_0000.nii.gz", image + np.float32(5000))
    assert plan("--target", "4") == SOME_FAILED
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == ["a", "c"]
    assert "Preprocessing: case b failed: its channel 0 is constant after CTNormal" in caplog.text


@pytest.mark.parametrize("readable", [True, False])
def test_a_case_that_has_gone_bad_does_not_stay_as_it_was(datasets, caplog, readable):
    """What was made of a file that is bad now goes; what cannot be reached at the moment stays, and that is said."""
    assert plan("--target", "4") == 0
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    if readable:
        (raw / "b_0000.nii.gz").write_bytes(b"not an image")
    else:
        (raw / "b_0000.nii.gz").unlink()
    os.utime(raw / "b.nii.gz", (time.time() + 10,) * 2)
    assert plan("--target", "4") == SOME_FAILED
    there = PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases()
    assert there == (["a", "c"] if readable else ["a", "b", "c"])
    assert ("it stays as it was preprocessed before" in caplog.text) != readable


def test_images_that_changed_after_the_import_are_named(datasets, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(preprocessing, "changed_since_import", lambda folder: asked.append(folder) or ["b"])
    assert plan("--target", "4") == 0
    assert asked == [datasets.parent / "nnUNet_raw" / UNLABELLED]
    assert "1 case changed since import (b): import again" in caplog.text


def test_failures_that_are_mended_are_forgotten(datasets):
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    (raw / "b_0000.nii.gz").write_bytes(b"not an image")
    assert plan("--target", "4") == SOME_FAILED
    content = read_json(raw / "dataset.json")
    del content["dataset"]["b"]
    write_json(raw / "dataset.json", content)
    assert plan("--target", "4") == 0
    report = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres_preprocessing.json"
    assert read_json(report)["failed"] == {}


def test_an_interrupted_case_leaves_nothing_behind(datasets, monkeypatch):
    """What counts as there is only what was moved to its place whole."""
    moves = []
    replace = Path.replace

    def fail_at_the_second(source, target):
        if str(target).endswith(("b2nd", "pkl")):
            moves.append(target)
            if len(moves) == 2:
                raise OSError("disk full")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail_at_the_second)
        assert plan("--target", "4") == SOME_FAILED
    assert len(PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases()) == len(CASES) - 1
    assert not list((datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres").glob(".partial*"))
    assert plan("--target", "4") == 0
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == list(CASES)


@pytest.mark.slow
def test_two_runs_at_once_do_not_touch_each_others_cases(datasets, monkeypatch):
    """A second run does the other cases while the first writes one: the half-written file stays where it is, and what
    the second one finished is not done, let alone written, again.
    """
    folder = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres"
    run_case_save = DefaultPreprocessor.run_case_save
    targets, made = [], {}

    def meet(self, output, *arguments):
        targets.append(output)
        if len(targets) == 1:
            half = Path(f"{output}.b2nd")
            half.write_bytes(b"half a case")
            for number, case in enumerate(CASES, start=1):
                if case != half.stem:
                    assert plan("--target", "4", "--part", f"{number}/{len(CASES)}") == 0
            assert half.read_bytes() == b"half a case"
            half.unlink()
            made.update({path.name: path.stat().st_ino for path in folder.glob("*.b2nd")})
        run_case_save(self, output, *arguments)

    assert plan("--target", "4", "--no_preprocess") == 0
    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", meet)
    assert plan("--target", "4") == 0
    assert len(targets) == len(CASES)
    there = {path.name: path.stat().st_ino for path in folder.glob("*.b2nd")}
    assert len(made) == 2 * (len(CASES) - 1) and made.items() <= there.items() and len(there) == 2 * len(CASES)
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == list(CASES)
    assert not list(folder.glob(".partial*"))


def test_only_what_nobody_writes_is_removed(tmp_path):
    for name in ("dead.x1", "alive.y2", "alive.more.z3"):
        (tmp_path / ".partial" / name).mkdir(parents=True)
    with held(tmp_path / ".partial" / "alive.lock"):
        preprocessing._remove_leftovers(tmp_path)
        assert sorted(path.name for path in (tmp_path / ".partial").iterdir()) == ["alive.lock", "alive.y2"]
    preprocessing._remove_leftovers(tmp_path)
    assert not (tmp_path / ".partial").exists()


def test_leftovers_of_many_cases_are_listed_once(tmp_path, monkeypatch):
    partial, listed = tmp_path / ".partial", []
    partial.mkdir()
    for number in range(20):
        (partial / f"case{number}.lock").touch()
    list_folder = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or list_folder(path))
    preprocessing._remove_leftovers(tmp_path)
    assert not partial.exists()
    assert listed == [partial]
