"""`plan`, end to end by `main`: a target's plans on unlabelled data, plans of one's own, and what goes wrong."""

import json
import shlex

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from support.planned_datasets import CASES, TARGET, UNLABELLED, plan, write_dataset, write_image
from support.refused import refused

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.dataset import PreprocessedDataset, planned_gpus
from nnunet_alice.errors import StaleError
from nnunet_alice.files import read_json, write_json


def network(plans, heads):
    """Network as nnU-Net's trainer builds it."""
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    return nnUNetTrainer.build_network_architecture(PlansManager(plans), configuration, 1, heads, True)


def test_target_plans_move_and_everything_that_decides_the_weights_stays(datasets, capsys):
    assert plan("--target", "4", "--no_preprocess") == 0
    moved = read_json(datasets / UNLABELLED / "nnUNetPlans_from004.json")
    target = read_json(datasets / TARGET / "nnUNetPlans.json")
    assert moved.pop("moved_from") == {"dataset": TARGET, "plans_name": "nnUNetPlans"}
    assert moved.pop("orientation") == "LPS"
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


def test_fingerprint_is_extracted_and_a_bad_case_left_out(datasets, caplog):
    path = datasets / UNLABELLED / "dataset_fingerprint.json"
    path.write_text("{ half a file")
    raw = datasets.parent / "nnUNet_raw" / UNLABELLED
    write_image(raw / "c.nii.gz", np.ones((3, 3, 3), np.uint8))
    assert plan("--no_preprocess") == SOME_FAILED
    fingerprint = read_json(path)
    assert len(fingerprint["spacings"]) == 2 and list(fingerprint["left_out"]) == ["c"]
    assert "Extracting the fingerprint: case c failed" in caplog.text
    before = path.stat().st_mtime_ns
    assert plan("--no_preprocess") == SOME_FAILED
    assert path.stat().st_mtime_ns == before


def test_plans_over_cases_that_other_plans_made_are_refused(datasets):
    """Plans of one data identifier share its folder: where it was made anew, the others' millimetres are wrong."""
    assert plan("-gpu_memory_target", "2") == 0
    own = datasets / UNLABELLED / "AlicePlans.json"
    other = read_json(own)
    other["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    write_json(own, other)
    with refused(StaleError, command="nnunet_alice"):
        PreprocessedDataset.find(900, "AlicePlans", "3d_fullres")


def test_moved_plans_are_whole_or_not_there(datasets, monkeypatch):
    """Killed while the networks are built that judge memory."""
    path = datasets / UNLABELLED / "nnUNetPlans_from004.json"
    for before in (None, "finished"):
        if before:
            assert plan("--target", "4", "--no_preprocess") == 0
        there = path.read_bytes() if before else None
        with monkeypatch.context() as patch:
            patch.setattr("nnunet_alice.planning.plans._view_size", _killed)
            assert plan("--target", "4", "--no_preprocess") == 130  # Ctrl-C
        assert (path.read_bytes() if path.exists() else None) == there


def _killed(*_):
    raise KeyboardInterrupt


def test_moved_plans_are_nnunets_but_for_batch_and_patch(datasets):
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    assert plan("--target", "4", "--no_preprocess") == 0
    moved = read_json(datasets / UNLABELLED / "nnUNetPlans_from004.json")
    move_plans_between_datasets(TARGET, UNLABELLED, "nnUNetPlans", "nnUNetPlans_from004")
    expected = read_json(datasets / UNLABELLED / "nnUNetPlans_from004.json")
    assert moved.pop("moved_from") == {"dataset": TARGET, "plans_name": "nnUNetPlans"}
    assert moved.pop("orientation") == "LPS"
    for plans in (moved, expected):
        for configuration in plans["configurations"].values():
            for changed in ("batch_size", "patch_size"):
                configuration.pop(changed, None)
    assert moved == expected


def test_plans_of_its_own(datasets, capsys):
    assert plan("-gpu_memory_target", "2", "-pl", "AlicePlannerResEncM") == 0
    found = PreprocessedDataset.find(900, "AliceResEncUNetMPlans", "3d_fullres")
    assert found.cases() == list(CASES)
    assert found.plans["experiment_planner_used"] == "AlicePlannerResEncM"
    printed = capsys.readouterr().out
    assert "nnUNetv2_train 900 3d_fullres all -tr AliceTrainer -p AliceResEncUNetMPlans\n" in printed
    assert plan("-overwrite_plans_name", "Mine", "--no_preprocess") == 0
    assert (datasets / UNLABELLED / "Mine.json").is_file()
    printed = capsys.readouterr().out
    assert "the same command without --no_preprocess" in printed
    assert "nnUNetv2_move_plans_between_datasets -s 900 -t T -sp Mine -tp Mine_from900\n" in printed


def test_plans_for_several_gpus(datasets, capsys):
    for arguments, plans in (
        (("--target", "4"), "nnUNetPlans_from004"),
        (("-pl", "AlicePlannerSmall"), "AliceSmallPlans"),
    ):
        assert plan("--no_preprocess", "-num_gpus", "8", *arguments) == 0
        planned = read_json(datasets / UNLABELLED / f"{plans}.json")["configurations"]["3d_fullres"]
        assert planned["batch_size"] == planned_gpus(planned) == 8
        command = PreprocessedDataset(UNLABELLED, plans, "3d_fullres").pretraining_command("DrasCLRTrainer")
        assert command == f"nnUNetv2_train 900 3d_fullres all -tr DrasCLRTrainer -p {plans} -num_gpus 8"
        printed = capsys.readouterr().out
        assert "8 pairs of views a step" in printed and "GB of GPU memory on each of 8." in printed
        assert f"nnUNetv2_train 900 3d_fullres all -tr AliceTrainer -p {plans} -num_gpus 8\n" in printed
        assert plan("--no_preprocess", *arguments) == 0
        single = read_json(datasets / UNLABELLED / f"{plans}.json")["configurations"]["3d_fullres"]
        assert planned_gpus(single) == 1 and "num_gpus" not in single
        assert "-num_gpus" not in capsys.readouterr().out


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


def test_one_case_is_planned_with_a_warning(datasets, caplog):
    one_case(datasets)
    assert plan("--target", "4", "--no_preprocess") == 0
    assert f"{UNLABELLED} has one case only" in caplog.text


def own_plans(base):
    write_json(base / UNLABELLED / "nnUNetPlans.json", {"configurations": {}})


def nothing(base):
    """Leave all as it is."""


@pytest.mark.parametrize(
    ("prepare", "arguments", "sentence"),
    [
        (target_channels("CT", "PET"), (), "has 1 channel(s) (ct), but Dataset004_Target has 2 (ct, pet)"),
        (target_channels("CT", "PET"), (), "without --target and fit the pretrained weights to the target's plans"),
        (target_channels("MRI"), (), "which nnU-Net normalises differently; import with --channel mri"),
        (only_2d, (), "Dataset004_Target/nnUNetPlans.json has no 3D configuration, only 2d"),
        (nothing, ("-c", "2d"), "-c 2d cannot be pretrained: take 3d_fullres"),
        (add_cascade, ("-c", "3d_cascade_fullres"), "-c 3d_cascade_fullres cannot be pretrained"),
        (nothing, ("--target_plans", "../nnUNetPlans"), "--target_plans is '../nnUNetPlans'"),
        (nothing, ("--target_plans", "Other"), "Other.json does not exist; run: nnUNetv2_plan_and_preprocess -d 4"),
        (nothing, ("-pl", "AlicePlanner"), "give only one of them"),
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
    assert "-pl takes: AlicePlanner, AlicePlannerSmall, AlicePlannerCoarse," in capsys.readouterr().err
    assert plan("--target", "77") == 1
    assert "No dataset with number 77" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plan("-gpu_memory_target", "-1")
    assert "is not above 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("--target", "4")], ids=["own", "target's"])
@pytest.mark.parametrize("name", ["../Mine", "a/b", "Mine__2", "..", ""])
def test_names_of_plans_that_nnunet_could_not_find_are_refused_and_nothing_is_written(datasets, name, arguments):
    before = sorted(datasets.rglob("*"))
    assert plan("-overwrite_plans_name", name, "--no_preprocess", *arguments) == 1
    assert sorted(datasets.rglob("*")) == before


def test_printed_commands_can_be_pasted_where_folders_have_spaces(datasets, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(datasets.parent / "my results"))
    assert plan("--target", "4", "--no_preprocess") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "-pretrained_weights" in line)
    assert shlex.split(line)[-1].startswith(str(datasets.parent / "my results" / UNLABELLED))


def test_a_dataset_that_was_not_imported(datasets, capsys):
    (datasets.parent / "nnUNet_raw" / UNLABELLED / "dataset.json").unlink()
    assert plan() == 1
    assert "run: nnunet_alice import -i FOLDER -d 900 -n Unlabelled" in capsys.readouterr().err


def test_json_of_plans_is_plain(datasets):
    """Numpy numbers would not survive; a second reader sees what we wrote."""
    assert plan("--no_preprocess") == 0
    content = (datasets / UNLABELLED / "AlicePlans.json").read_text()
    assert all(isinstance(n, int) for n in json.loads(content)["configurations"]["3d_fullres"]["patch_size"])
