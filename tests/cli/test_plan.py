"""`plan`, end to end by `main`: a target's plans on unlabelled data, plans of one's own, and what goes wrong."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_alice.cli.main import main
from nnunet_alice.data import preprocessing
from nnunet_alice.files import read_json, write_json
from nnunet_alice.nnunet_folders import PreprocessedDataset

UNLABELLED, TARGET = "Dataset900_Unlabelled", "Dataset004_Target"
CASES = ("a", "b", "c")


def write_dataset(folder, name, channels=("CT",), labels=("background", "body"), cases=CASES):
    """Raw dataset of random images with a `dataset` key, and a fingerprint as nnU-Net extracts it."""
    rng = np.random.default_rng(len(name))
    raw = folder / "nnUNet_raw" / name
    raw.mkdir(parents=True)
    files, shapes = {}, []
    for case in cases:
        shape = tuple(int(n) for n in rng.integers(24, 33, 3))
        images = []
        for channel in range(len(channels)):
            write_image(raw / f"{case}_{channel:04d}.nii.gz", rng.normal(100, 20, shape).astype(np.float32))
            images.append(f"{case}_{channel:04d}.nii.gz")
        write_image(raw / f"{case}.nii.gz", np.ones(shape, np.uint8))
        files[case] = {"images": images, "label": f"{case}.nii.gz"}
        shapes.append(shape)
    content = {
        "channel_names": {str(n): channel for n, channel in enumerate(channels)},
        "labels": {label: n for n, label in enumerate(labels)},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "dataset": files,
    }
    write_json(raw / "dataset.json", content)
    statistics = {"mean": 100.0, "median": 100.0, "std": 20.0, "min": 0.0, "max": 200.0}
    statistics |= {"percentile_00_5": 50.0, "percentile_99_5": 150.0 + len(labels)}
    fingerprint = {
        "spacings": [(1.0, 1.0, 1.0)] * len(cases),
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {str(n): statistics for n in range(len(channels))},
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(folder / "nnUNet_preprocessed" / name / "dataset_fingerprint.json", fingerprint)
    return raw


def write_image(path, array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def datasets(folder, caplog):
    """An unlabelled dataset and a target that nnU-Net has planned; the log is kept as the command line shows it."""
    caplog.set_level("INFO")
    write_dataset(folder, UNLABELLED)
    write_dataset(folder, TARGET, labels=("background", "liver", "spleen", "kidney"))
    ExperimentPlanner(TARGET).plan_experiment()
    return folder / "nnUNet_preprocessed"


def plan(*arguments):
    return main(["plan", "-d", "900", "-np", "1", *arguments])


def network(plans, heads):
    """Network as nnU-Net's trainer builds it."""
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    return nnUNetTrainer.build_network_architecture(PlansManager(plans), configuration, 1, heads, True)


def mtimes(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_target_plans_move_and_everything_that_decides_the_weights_stays(datasets, capsys):
    assert plan("--target", "4", "--no_preprocess") == 0
    moved = read_json(datasets / UNLABELLED / "nnUNetPlans_from004.json")
    target = read_json(datasets / TARGET / "nnUNetPlans.json")
    assert moved.pop("moved_from") == {"dataset": TARGET, "plans_name": "nnUNetPlans"}
    assert moved.pop("dataset_name") == UNLABELLED and moved.pop("plans_name") == "nnUNetPlans_from004"
    del target["dataset_name"], target["plans_name"]
    ours, theirs = moved["configurations"]["3d_fullres"], target["configurations"]["3d_fullres"]
    assert ours.pop("data_identifier") == "nnUNetPlans_from004_3d_fullres"
    assert ours.pop("batch_size") == 3  # as many pairs as cases; the patch is small
    volume = np.asarray(theirs["median_image_size_in_voxels"])  # views show two thirds of it, patches may show all
    assert np.all(np.asarray(ours.pop("patch_size")) < 0.9 * volume) and np.all(theirs.pop("patch_size") >= volume)
    del theirs["data_identifier"], theirs["batch_size"]
    moved["configurations"]["2d"]["data_identifier"] = target["configurations"]["2d"]["data_identifier"]
    assert moved == target
    assert read_json(datasets / UNLABELLED / "dataset.json")["labels"] == {"background": 0, "body": 1}
    printed = capsys.readouterr().out
    checkpoint = datasets.parent / "nnUNet_results" / UNLABELLED / "AliceTrainer__nnUNetPlans_from004__3d_fullres"
    for command in (
        "nnunet_alice anatomy -d 900 -p nnUNetPlans_from004 -c 3d_fullres\n",
        "nnUNetv2_train 900 3d_fullres all -tr AliceTrainer -p nnUNetPlans_from004\n",
        "nnUNetv2_train 4 3d_fullres 0 -p nnUNetPlans "
        f"-pretrained_weights {checkpoint / 'fold_all' / 'checkpoint_final.pth'}\n",
    ):
        assert command in printed


def test_weights_of_the_moved_plans_load_in_stock_nnunet(datasets, tmp_path):
    assert plan("--target", "4", "--no_preprocess") == 0
    pretrained = network(read_json(datasets / UNLABELLED / "nnUNetPlans_from004.json"), heads=2)
    fresh = network(read_json(datasets / TARGET / "nnUNetPlans.json"), heads=4)
    torch.save({"network_weights": pretrained.state_dict()}, tmp_path / "checkpoint.pth")
    load_pretrained_weights(fresh, str(tmp_path / "checkpoint.pth"))
    for key, value in fresh.state_dict().items():
        if ".seg_layers." not in key:
            assert torch.equal(value, pretrained.state_dict()[key]), key


def test_preprocessed_cases_equal_nnunets_own(datasets, capsys):
    assert plan("--target", "4") == 0
    found = PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres")
    assert found.cases() == list(CASES)
    assert "3 now, 0 before, 0 failed" in capsys.readouterr().out
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


def test_running_again_does_only_what_is_missing_or_changed(datasets, capsys, caplog):
    assert plan("--target", "4") == 0
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    folder = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres"
    before = mtimes(folder)
    assert plan("--target", "4") == 0
    assert mtimes(folder) == before
    assert "preprocessed with these plans already" in caplog.text
    capsys.readouterr()

    (folder / "a.b2nd").unlink()  # as if killed before the case was whole
    write_image(raw / "b_0000.nii.gz", np.zeros(sitk.ReadImage(str(raw / "b.nii.gz")).GetSize()[::-1], np.float32))
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
    assert np.ptp(PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").image("b")[...]) == 0
    assert "2 now, 0 before" in capsys.readouterr().out


def test_other_plans_start_anew_and_say_so(datasets, caplog):
    assert plan("--target", "4") == 0
    folder = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres"
    before = mtimes(folder)
    path = datasets / TARGET / "nnUNetPlans.json"
    target = read_json(path)
    target["foreground_intensity_properties_per_channel"]["0"]["percentile_99_5"] = 120.0
    write_json(path, target)
    assert plan("--target", "4") == 0
    assert "preprocessed anew: it was made by other plans" in caplog.text
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
    assert plan("--target", "4") == 0
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == ["a", "c"]
    assert "Case b could not be preprocessed" in caplog.text
    report = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres_preprocessing.json"
    assert list(read_json(report)["failed"]) == ["b"]
    for case in ("a", "c"):
        (raw / f"{case}.nii.gz").write_bytes(b"not an image")
    assert plan("--target", "4") == 1
    assert "No case of Dataset900_Unlabelled could be preprocessed" in capsys.readouterr().err


def test_an_interrupted_case_leaves_nothing_behind(datasets, monkeypatch):
    """What counts as there is only what was moved to its place whole."""
    moves = []
    replace = os.replace

    def fail_at_the_second(source, target):
        if str(target).endswith(("b2nd", "pkl")):
            moves.append(target)
            if len(moves) == 2:
                raise OSError("disk full")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(preprocessing.os, "replace", fail_at_the_second)
        assert plan("--target", "4") == 0
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == ["b", "c"]
    assert not list((datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres").glob(".partial*"))
    assert plan("--target", "4") == 0
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == list(CASES)


def test_two_runs_at_once_do_not_touch_each_others_cases(datasets, monkeypatch):
    """A second run starts while the first writes a case: the first one's half-written file stays where it is."""
    folder = datasets / UNLABELLED / "nnUNetPlans_from004_3d_fullres"
    run_case_save = DefaultPreprocessor.run_case_save
    targets = []

    def meet(self, output, *arguments):
        targets.append(output)
        if len(targets) == 1:
            Path(f"{output}.b2nd").write_bytes(b"half a case")
            assert plan("--target", "4") == 0
            assert Path(f"{output}.b2nd").read_bytes() == b"half a case"
            Path(f"{output}.b2nd").unlink()
        run_case_save(self, output, *arguments)

    monkeypatch.setattr(DefaultPreprocessor, "run_case_save", meet)
    assert plan("--target", "4") == 0
    assert len(targets) == 2 * len(CASES) and len({Path(target).parent for target in targets}) == 2
    assert PreprocessedDataset.find(900, "nnUNetPlans_from004", "3d_fullres").cases() == list(CASES)
    assert not list(folder.glob(".partial*"))


def test_only_folders_of_dead_or_long_idle_runs_are_removed(tmp_path):
    here = platform.node()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    names = {
        "dead": f".partial@{here}@{dead.pid}@1",
        "alive": f".partial@{here}@{os.getpid()}@2",
        "elsewhere": f".partial@not{here}@{dead.pid}@3",
        "idle": f".partial@not{here}@{dead.pid}@4",
        "of an older version": ".partial",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.b2nd").touch()
    os.utime(tmp_path / names["idle"], (time.time() - 25 * 3600,) * 2)
    preprocessing._remove_leftovers(tmp_path)
    left = {reason for reason, name in names.items() if (tmp_path / name).exists()}
    assert left == {"alive", "elsewhere", "of an older version"}


def test_fingerprint_is_extracted_and_a_bad_case_left_out(datasets, caplog, monkeypatch):
    """nnU-Net's own extraction, with forked instead of spawned processes, which would take many seconds to start."""
    forking = SimpleNamespace(get_context=lambda method: multiprocessing.get_context("fork"))
    monkeypatch.setattr(fingerprint_extractor, "multiprocessing", forking)
    path = datasets / UNLABELLED / "dataset_fingerprint.json"
    path.write_text("{ half a file")
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    write_image(raw / "c.nii.gz", np.ones((3, 3, 3), np.uint8))
    assert plan("--no_preprocess") == 0
    fingerprint = read_json(path)
    assert len(fingerprint["spacings"]) == 2 and list(fingerprint["left_out"]) == ["c"]
    assert "Case c is left out of the fingerprint" in caplog.text
    before = path.stat().st_mtime_ns
    assert plan("--no_preprocess") == 0
    assert path.stat().st_mtime_ns == before


def test_plans_of_its_own(datasets, capsys):
    assert plan("-gpu_memory_target", "2", "-pl", "AlicePlannerResEncM") == 0
    found = PreprocessedDataset.find(900, "AliceResEncUNetMPlans", "3d_fullres")
    assert found.cases() == list(CASES)
    assert found.plans["experiment_planner_used"] == "AlicePlannerResEncM"
    printed = capsys.readouterr().out
    assert "nnUNetv2_train 900 3d_fullres all -tr AliceTrainer -p AliceResEncUNetMPlans\n" in printed
    assert plan("-overwrite_plans_name", "Mine", "--no_preprocess") == 0
    assert (datasets / UNLABELLED / "Mine.json").is_file()
    assert "nnUNetv2_preprocess -d 900 -plans_name Mine -c 3d_fullres\n" in capsys.readouterr().out


def test_plans_for_several_gpus(datasets, capsys):
    for arguments, plans in (
        (("--target", "4"), "nnUNetPlans_from004"),
        (("-pl", "AlicePlannerSmall"), "AliceSmallPlans"),
    ):
        assert plan("--no_preprocess", "-num_gpus", "8", *arguments) == 0
        assert read_json(datasets / UNLABELLED / f"{plans}.json")["configurations"]["3d_fullres"]["batch_size"] == 8
        printed = capsys.readouterr().out
        assert "8 pairs of views a step" in printed and "GB of GPU memory on each of 8." in printed
        assert f"nnUNetv2_train 900 3d_fullres all -tr AliceTrainer -p {plans} -num_gpus 8\n" in printed


def test_batch_of_moved_plans_follows_the_memory_target(datasets, caplog):
    path = datasets / TARGET / "nnUNetPlans.json"
    target = read_json(path)
    target["configurations"]["3d_fullres"]["patch_size"] = [128, 128, 128]
    write_json(path, target)

    def pairs(*arguments):
        assert plan("--target", "4", "--no_preprocess", "--keep_patch", *arguments) == 0
        moved = read_json(datasets / UNLABELLED / "nnUNetPlans_from004.json")
        assert moved["configurations"]["3d_fullres"]["patch_size"] == [128, 128, 128]  # larger than the volumes
        return moved["configurations"]["3d_fullres"]["batch_size"]

    assert pairs("-gpu_memory_target", "2") == 2
    assert "more than the target of 2.0 GB" in caplog.text
    caplog.clear()
    assert pairs("-gpu_memory_target", "80") == 3
    assert "more than the target" not in caplog.text


def change(path, **values):
    write_json(path, {**read_json(path), **values})


def only_2d(base):
    configurations = read_json(base / TARGET / "nnUNetPlans.json")["configurations"]
    change(base / TARGET / "nnUNetPlans.json", configurations={"2d": configurations["2d"]})


def add_cascade(base):
    configurations = read_json(base / TARGET / "nnUNetPlans.json")["configurations"]
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    change(base / TARGET / "nnUNetPlans.json", configurations={**configurations, "3d_cascade_fullres": cascade})


def target_channels(*names):
    return lambda base: change(base / TARGET / "dataset.json", channel_names=dict(enumerate(names)))


def one_case(base):
    raw = base.parent / "nnUNet_raw" / UNLABELLED / "dataset.json"
    change(raw, dataset={"a": read_json(raw)["dataset"]["a"]})


def own_plans(base):
    write_json(base / UNLABELLED / "nnUNetPlans.json", {"configurations": {}})


def nothing(base):
    """Leave all as it is."""


@pytest.mark.parametrize(
    ("prepare", "arguments", "sentence"),
    [
        (target_channels("CT", "PET"), (), "has 1 channel(s) (ct), but Dataset004_Target has 2 (ct, pet)"),
        (target_channels("MRI"), (), "which nnU-Net normalises differently; import with --channel mri"),
        (only_2d, (), "Dataset004_Target/nnUNetPlans.json has no 3D configuration, only 2d"),
        (nothing, ("-c", "2d"), "'2d' cannot be pretrained; -c must be one of: 3d_fullres"),
        (add_cascade, ("-c", "3d_cascade_fullres"), "'3d_cascade_fullres' cannot be pretrained"),
        (nothing, ("--target_plans", "Other"), "Other.json does not exist; run: nnUNetv2_plan_and_preprocess -d 4"),
        (nothing, ("-pl", "AlicePlanner"), "give only one of them"),
        (one_case, (), "has one case only"),
        (own_plans, ("-overwrite_plans_name", "nnUNetPlans"), "holds other plans already"),
    ],
)
def test_what_does_not_fit_is_one_sentence(datasets, capsys, prepare, arguments, sentence):
    prepare(datasets)
    assert plan("--target", "4", "--no_preprocess", *arguments) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (datasets / UNLABELLED / "nnUNetPlans_from004.json").exists()


def test_other_names_for_channels_normalised_alike_are_only_told(datasets, caplog):
    for variable, name, channel in (("nnUNet_raw", UNLABELLED, "T1"), ("nnUNet_preprocessed", TARGET, "MRI")):
        change(datasets.parent / variable / name / "dataset.json", channel_names={"0": channel})
    assert plan("--target", "4", "--no_preprocess") == 0
    assert "both are normalised alike" in caplog.text


@pytest.mark.parametrize("swapped", [True, False])
def test_order_of_channels(folder, capsys, swapped):
    write_dataset(folder, UNLABELLED, channels=("T2", "T1") if swapped else ("T1", "T2"))
    write_dataset(folder, TARGET, channels=("T1", "T2"))
    ExperimentPlanner(TARGET).plan_experiment()
    assert plan("--target", "4", "--no_preprocess") == int(swapped)
    assert ("import them in the target's order" in capsys.readouterr().err) is swapped


def test_wrong_names_are_said(datasets, capsys):
    assert plan("-pl", "Nobody") == 1
    assert "-pl takes: AlicePlanner, AlicePlannerSmall, AlicePlannerResEncM" in capsys.readouterr().err
    assert plan("--target", "77") == 1
    assert "No dataset with number 77" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plan("-gpu_memory_target", "-1")
    assert "is not above 0" in capsys.readouterr().err


def test_a_dataset_that_was_not_imported(datasets, capsys):
    (datasets.parent / "nnUNet_raw" / UNLABELLED / "dataset.json").unlink()
    assert plan() == 1
    assert "run: nnunet_alice import -i FOLDER -d 900 -n Unlabelled" in capsys.readouterr().err


def test_json_of_plans_is_plain(datasets):
    """Numpy numbers would not survive; a second reader sees what we wrote."""
    assert plan("--no_preprocess") == 0
    content = (datasets / UNLABELLED / "AlicePlans.json").read_text()
    assert all(isinstance(n, int) for n in json.loads(content)["configurations"]["3d_fullres"]["patch_size"])
