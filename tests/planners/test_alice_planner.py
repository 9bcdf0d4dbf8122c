"""Planners: whatever the data look like, the plans suit pairs of masked views, the memory target, and stock nnU-Net."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from support.refused import refused
from support.small_datasets import set_named_folders

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.planners.alice import (
    AlicePlanner,
    AlicePlannerCoarse,
    AlicePlannerResEncL,
    AlicePlannerResEncM,
    AlicePlannerResEncXL,
    AlicePlannerSmall,
    maskable_patch,
)
from nnunet_alice.planning.memory import gigabytes_of_pairs
from nnunet_alice.views.masking import block_shape

# spacing in mm and shape in voxels, (z, y, x)
DATA = {
    "torso CT": ((1.5, 0.8, 0.8), (300, 512, 512)),
    "isotropic": ((1.0, 1.0, 1.0), (150, 180, 160)),
    "thick slices": ((5.0, 0.7, 0.7), (26, 400, 400)),
    "few thick slices": ((10.0, 1.4, 1.4), (9, 220, 220)),
    "three slices": ((10.0, 1.0, 1.0), (3, 128, 128)),
    "hippocampus": ((1.0, 1.0, 1.0), (35, 50, 35)),
    "tiny": ((1.0, 1.0, 1.0), (13, 17, 11)),
}
# where nnU-Net's search for a small patch went in circles, or took an axis' last voxel
HARD = {
    "chest and abdomen CT": ((2.5, 0.98, 0.98), (350, 512, 512)),
    "long": ((1.0, 1.0, 1.0), (200, 30, 30)),
    "wide": ((1.0, 1.0, 1.0), (40, 30, 500)),
    "two wide slices": ((5.0, 1.0, 1.0), (2, 400, 400)),
}


def make_dataset(folder, monkeypatch, kind, cases=60, channels=1):
    """Raw dataset and fingerprint as nnU-Net's planners want them; all cases share one small image."""
    spacing, shape = (DATA | HARD)[kind]
    name = "Dataset900_Planned"
    set_named_folders(monkeypatch, folder)
    image = folder / "image.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 4, 4), np.float32)), str(image))
    files = {"images": [str(image)] * channels, "label": str(image)}
    write_json(
        folder / "nnUNet_raw" / name / "dataset.json",
        {
            "channel_names": {str(c): "CT" for c in range(channels)},
            "labels": {"background": 0, "body": 1},
            "numTraining": cases,
            "file_ending": ".nii.gz",
            "dataset": {f"case{n:03d}": files for n in range(cases)},
        },
    )
    statistics = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    write_json(
        folder / "nnUNet_preprocessed" / name / "dataset_fingerprint.json",
        {
            "spacings": [spacing] * cases,
            "shapes_after_crop": [shape] * cases,
            "foreground_intensity_properties_per_channel": {str(c): statistics for c in range(channels)},
            "median_relative_size_after_cropping": 1.0,
        },
    )
    return name


def plan(planner_class, name, **kwargs):
    """Plan; gives planner, 3d_fullres content and its cost."""
    planner = planner_class(name, **kwargs)
    content = planner.plan_experiment()["configurations"]["3d_fullres"]
    cost = planner.cost(content["architecture"], content["patch_size"])
    return SimpleNamespace(planner=planner, content=content, cost=cost)


def total_stride(content):
    return np.prod(content["architecture"]["arch_kwargs"]["strides"], axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("planner_class", [AlicePlanner, AlicePlannerResEncM])
def test_patch_and_batch_suit_masked_pairs_within_the_memory_target(tmp_path, monkeypatch, kind, planner_class):
    planned = plan(planner_class, make_dataset(tmp_path, monkeypatch, kind))
    patch = planned.content["patch_size"]
    block = block_shape(patch)
    assert all(n % s == 0 for n, s in zip(patch, total_stride(planned.content), strict=True))
    assert all(n % b == 0 and n // b >= 4 for n, b in zip(patch, block, strict=True)), (patch, block)
    pairs = planned.content["batch_size"]
    assert 4 <= pairs <= 60
    assert gigabytes_of_pairs(planned.cost, planned.planner.memory_reference, pairs) <= 8
    # Nothing is given away: one more pair would not fit, unless there are no more cases.
    assert pairs == 60 or gigabytes_of_pairs(planned.cost, planned.planner.memory_reference, pairs + 1) > 8


@pytest.mark.parametrize("planner_class", [AlicePlannerResEncL, AlicePlannerResEncXL])
def test_larger_residual_planners_use_their_own_targets(tmp_path, monkeypatch, planner_class):
    planned = plan(planner_class, make_dataset(tmp_path, monkeypatch, "isotropic"))
    used = gigabytes_of_pairs(planned.cost, planned.planner.memory_reference, planned.content["batch_size"])
    assert 0.5 * planner_class.standard_gigabytes < used <= planner_class.standard_gigabytes


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATA)
def test_the_small_planner_is_small_whatever_the_data(tmp_path, monkeypatch, kind):
    content = plan(AlicePlannerSmall, make_dataset(tmp_path, monkeypatch, kind)).content
    features = content["architecture"]["arch_kwargs"]["features_per_stage"]
    assert features[0] == 8 and max(features) <= 64
    # Few slices grow to four, so that the axis splits into mask blocks: then the patch may be up to twice as large.
    assert np.prod(content["patch_size"]) <= (1 if content["patch_size"][0] > 4 else 2) * 24**3
    assert content["batch_size"] == 4
    assert all(
        n % b == 0 and n // b >= 4
        for n, b in zip(content["patch_size"], block_shape(content["patch_size"]), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "patch"), [("torso CT", (24, 24, 24)), ("three slices", (4, 80, 80))])
def test_the_coarse_planner_takes_cubes_where_the_volume_lets_it(tmp_path, monkeypatch, kind, patch):
    planned = plan(AlicePlannerCoarse, make_dataset(tmp_path, monkeypatch, kind))
    assert planned.content["patch_size"] == patch
    strides = total_stride(planned.content)
    assert all(n / s >= 3 or s == 1 for n, s in zip(patch, strides, strict=True)) and max(strides) >= 8
    spacing, shape = (np.array(values) for values in DATA[kind])
    sizes_mm = np.multiply(planned.content["median_image_size_in_voxels"], planned.content["spacing"])
    np.testing.assert_allclose(sizes_mm, spacing * shape, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("planner_class", [AlicePlannerSmall, AlicePlannerCoarse])
def test_the_small_planners_find_a_patch_of_every_volume(tmp_path, monkeypatch, kind, planner_class):
    steps = iter(range(20_000))  # StopIteration ends a search that would go on for ever
    monkeypatch.setattr(
        default_experiment_planner,
        "get_pool_and_conv_props",
        lambda *args: next(steps) >= 0 and get_pool_and_conv_props(*args),
    )
    content = plan(planner_class, make_dataset(tmp_path, monkeypatch, kind)).content
    patch, volume = np.array(content["patch_size"]), np.array(content["median_image_size_in_voxels"])
    assert np.prod(patch) <= (1 if patch[0] > 4 else 4) * planner_class.max_patch_vox  # few slices grow to four
    assert np.prod(patch) > 0.25 * planner_class.max_patch_vox
    assert all(patch <= np.maximum(volume, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("planner", "edge"), [(AlicePlannerSmall, 100), (AlicePlannerCoarse, 64)])
@pytest.mark.parametrize("kind", DATA)
def test_the_small_planners_take_coarser_voxels_of_large_volumes_alone(tmp_path, monkeypatch, kind, planner, edge):
    name = make_dataset(tmp_path, monkeypatch, kind)
    stock = ExperimentPlanner(name).plan_experiment()["configurations"]["3d_fullres"]
    small = plan(planner, name).content
    voxels = np.prod(stock["median_image_size_in_voxels"])
    if voxels <= edge**3:
        assert small["spacing"] == stock["spacing"] and small["data_identifier"] == "AlicePlans_3d_fullres"
        return
    assert small["data_identifier"] == f"{planner.standard_plans_name}_3d_fullres"
    # as many as fit: the step of the search is 3 % an axis
    assert 0.9 * edge**3 < np.prod(small["median_image_size_in_voxels"]) < 1.02 * edge**3
    coarser = np.array(small["spacing"]) > np.array(stock["spacing"])
    assert coarser.any() and len(set(np.array(small["spacing"])[coarser])) == 1
    assert max(small["spacing"]) == max(np.array(small["spacing"])[coarser].max(), *stock["spacing"])


def test_plans_load_in_nnunet_and_build_the_network(tmp_path, monkeypatch):
    name = make_dataset(tmp_path, monkeypatch, "thick slices", channels=2)
    plan(AlicePlanner, name)
    manager = PlansManager(str(tmp_path / "nnUNet_preprocessed" / name / "AlicePlans.json"))
    configuration = manager.get_configuration("3d_fullres")
    assert configuration.preprocessor_class.__name__ == "DefaultPreprocessor"
    assert manager.image_reader_writer_class.__module__.startswith("nnunetv2.")
    assert callable(configuration.resampling_fn_data) and callable(configuration.resampling_fn_seg)
    assert manager.get_label_manager({"labels": {"background": 0, "body": 1}}).num_segmentation_heads == 2
    with torch.device("meta"):
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            input_channels=2,
            output_channels=2,
            allow_init=False,
            deep_supervision=False,
        )
        output = network(torch.zeros(1, 2, *configuration.patch_size))
    assert output.shape == (1, 2, *configuration.patch_size)


@pytest.mark.slow
def test_more_memory_never_gives_smaller_steps(tmp_path, monkeypatch):
    name = make_dataset(tmp_path, monkeypatch, "torso CT")
    steps = []
    for gigabytes in (4, 8, 16, 32):
        content = plan(AlicePlanner, name, gpu_memory_target_in_gb=gigabytes).content
        steps.append((math.prod(content["patch_size"]), content["batch_size"]))
    voxels = [patch * pairs for patch, pairs in steps]
    assert voxels == sorted(voxels) and len(set(voxels)) == len(voxels)
    assert [patch for patch, _ in steps] == sorted(patch for patch, _ in steps)


def test_spacing_normalisation_and_2d_are_nnunets_own(tmp_path, monkeypatch):
    name = make_dataset(tmp_path, monkeypatch, "few thick slices")
    stock = ExperimentPlanner(name).plan_experiment()
    ours = AlicePlanner(name).plan_experiment()
    for key in ("spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "preprocessor_name"):
        assert np.array_equal(ours["configurations"]["3d_fullres"][key], stock["configurations"]["3d_fullres"][key])
    for key in ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel"):
        assert ours[key] == stock[key]
    two = [dict(plans["configurations"]["2d"], data_identifier="") for plans in (ours, stock)]
    assert str(two[0]) == str(two[1])


def test_planners_share_full_resolution_but_not_under_another_name(tmp_path, monkeypatch):
    name = make_dataset(tmp_path, monkeypatch, "hippocampus")
    assert plan(AlicePlanner, name).content["data_identifier"] == "AlicePlans_3d_fullres"
    assert plan(AlicePlannerResEncM, name).content["data_identifier"] == "AlicePlans_3d_fullres"
    assert plan(AlicePlanner, name, plans_name="Mine").content["data_identifier"] == "Mine_3d_fullres"


def test_configurations_added_by_hand_survive_planning_again(tmp_path, monkeypatch):
    name = make_dataset(tmp_path, monkeypatch, "hippocampus")
    plan(AlicePlanner, name)
    path = tmp_path / "nnUNet_preprocessed" / name / "AlicePlans.json"
    plans = read_json(path)
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    plans["configurations"]["3d_fullres"]["batch_size"] = 999
    write_json(path, plans)
    plan(AlicePlanner, name)
    again = read_json(path)["configurations"]
    assert again["mine"] == {"inherits_from": "3d_fullres", "batch_size": 3}
    assert again["3d_fullres"]["batch_size"] != 999


def test_never_more_pairs_than_cases_but_at_least_four(tmp_path, monkeypatch):
    assert plan(AlicePlanner, make_dataset(tmp_path, monkeypatch, "tiny", cases=7)).content["batch_size"] == 7
    assert plan(AlicePlanner, make_dataset(tmp_path, monkeypatch, "tiny", cases=2)).content["batch_size"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("planner_class", [AlicePlanner, AlicePlannerSmall])
@pytest.mark.parametrize(("gpus", "cases"), [(3, 60), (8, 60), (8, 20), (8, 2)])
def test_every_gpu_gets_as_many_pairs_and_has_its_own_memory(tmp_path, monkeypatch, planner_class, gpus, cases):
    name = make_dataset(tmp_path, monkeypatch, "torso CT", cases=cases)
    planned = plan(planner_class, name, num_gpus=gpus)
    pairs = planned.content["batch_size"]
    assert pairs % gpus == 0 and pairs >= max(4, gpus) and pairs <= max(cases, gpus, 6)
    used = [gigabytes_of_pairs(planned.cost, planned.planner.memory_reference, pairs // gpus + n) for n in (0, 1)]
    assert used[0] <= 8
    if planner_class is AlicePlanner:
        # Nothing is given away: another pair on every GPU would not fit, or there are no more cases.
        assert used[1] > 8 or pairs + gpus > cases
        single = plan(planner_class, name).content["patch_size"]
        assert math.prod(planned.content["patch_size"]) >= math.prod(single)


def test_a_hopeless_memory_target_is_one_sentence(tmp_path, monkeypatch):
    name = make_dataset(tmp_path, monkeypatch, "isotropic")
    with refused(InputError, option="-gpu_memory_target"):
        plan(AlicePlanner, name, gpu_memory_target_in_gb=0.01)


@pytest.mark.parametrize("poolings", range(6))
def test_maskable_patch_for_every_length(poolings):
    stride = 2**poolings
    strides = [[2, 1, 1]] * poolings or [[1, 1, 1]]
    for length in range(stride, 260, stride):
        (result, *others) = maskable_patch((length, 64, 4), strides, min_edge_vox=4)
        assert others == [64, 4]
        (block,) = block_shape([result])
        assert result % stride == 0 and result % block == 0 and result // block >= 4
        if length >= 4 * stride:
            assert 4 * stride <= result <= length
            # No larger patch that fits was passed over.
            for passed in range(result + stride, length + 1, stride):
                assert passed % block_shape([passed])[0] or passed // block_shape([passed])[0] < 4
