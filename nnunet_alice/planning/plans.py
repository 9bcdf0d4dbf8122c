"""Plans of an unlabelled dataset: a target's plans moved onto it, or a planner's own from the data alone."""

import contextlib
import copy
import io
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from nnunet_alice.anatomy.orientation import ORIENTATION
from nnunet_alice.dataset import note_gpus
from nnunet_alice.errors import InputError, NotPreparedError, OccupiedError
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.nnunet_folders import channel_names, dataset_number, nnunet_folder, plans_identifier
from nnunet_alice.planning.memory import gigabytes_of_pairs, gigabytes_of_training
from nnunet_alice.planning.modalities import modalities_of, scheme_of
from nnunet_alice.planning.moved_plans import moved_name, rename_plans
from nnunet_alice.planning.orientations import fit_orientation

logger = logging.getLogger(__name__)

#: Fewest pairs of views where the patch is given by a target's plans.
MIN_PAIRS = 2
#: A view shows at most this share of the median volume along every axis. Larger ones are all alike but for their
#: padding, which then tells views apart better than anatomy does (docs/concepts/alice.md).
MAX_VIEW = 2 / 3
#: Shortest edge of the bottleneck of a view, in voxels.
MIN_BOTTLENECK = 2
#: Key of moved plans that names the dataset and the plans they came from.
MOVED_FROM = "moved_from"


@dataclass(frozen=True)
class Planned:
    """One configuration of plans that are ready for pretraining.

    Attributes:
        plans_name: identifier of the plans.
        patch_size: voxels, (z, y, x).
        spacing: mm, (z, y, x).
        pairs: pairs of views per step (``batch_size`` of the configuration), on all GPUs together.
        gigabytes: memory that a step is estimated to take on a GPU, GB.
        target_patch: patch of the target's plans where views had to be smaller.
    """

    plans_name: str
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    pairs: int
    gigabytes: float
    target_patch: tuple[int, ...] | None = None


def plan_from_data(
    dataset: str,
    planner_class: type,
    configuration: str = "3d_fullres",
    gpu_memory_gb: float | None = None,
    plans_name: str | None = None,
    num_gpus: int = 1,
) -> Planned:
    """Plan from the fingerprint of the dataset itself and write the plans.

    Args:
        dataset: full name of the dataset; it has a fingerprint.
        planner_class: a planner that sizes batches in pairs (``planners/``).
        configuration: configuration that will be trained.
        gpu_memory_gb: memory target in GB; the planner's own if not given.
        plans_name: identifier of the plans; the planner's own if not given.
        num_gpus: GPUs that will train together.

    Raises:
        InputError: the plans have no such 3D configuration, or nothing fits the memory target.
    """
    if plans_name is not None:
        plans_identifier(plans_name, "-overwrite_plans_name")
    planner = planner_class(dataset, gpu_memory_target_in_gb=gpu_memory_gb, plans_name=plans_name, num_gpus=num_gpus)
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # progress bars stay
        plans = planner.plan_experiment()
    logger.debug("%s", printed.getvalue())
    check_configuration(plans, configuration, f"{dataset}/{planner.plans_identifier}.json")
    return _summary(planner, plans, configuration, planner.UNet_vram_target_GB)


def move_target_plans(
    dataset: str,
    target: str,
    target_plans: str,
    configuration: str,
    planner_classes: Iterable[type],
    gpu_memory_gb: float | None = None,
    plans_name: str | None = None,
    keep_patch: bool = False,
    num_gpus: int = 1,
) -> Planned:
    """Move the plans of a target dataset onto an unlabelled one, so that pretrained weights fit the target as they are.

    Network, spacing, normalisation and its intensity statistics stay. In the 3D configurations ``batch_size`` becomes
    the number of pairs of views, and a patch that shows nearly the whole volume becomes smaller (:func:`view_size`);
    weights do not depend on it. The moved plans are named ``<plans>_from<number>`` unless named by
    the caller: the same target always gives the same name. Neither plans nor preprocessed cases of the dataset's
    own or of a different target can be mixed up with them. Fine-tuning uses the target's own plans, whatever this name.

    Args:
        dataset: full name of the unlabelled dataset; it has a fingerprint.
        target: full name of the target dataset.
        target_plans: identifier of the target's plans.
        configuration: configuration that will be trained.
        planner_classes: planners of ``planners/``, the plain one first; the first that is built on the planner of the
            target's plans judges memory.
        gpu_memory_gb: memory target in GB. If not given, what the target's own training takes, and at least what
            its planner aims at.
        plans_name: identifier of the moved plans.
        keep_patch: keep the target's patch, however much of a volume it shows.
        num_gpus: GPUs that will train together.

    Raises:
        NotPreparedError: the target has no such plans.
        InputError: channels, normalisation, configuration or orientation do not fit, or ``plans_name`` is taken by
            other plans.
    """
    plans = plans_of_target(dataset, target, target_plans, configuration)
    name = plans_identifier(plans_name or moved_name(target, target_plans), "-overwrite_plans_name")
    path = nnunet_folder("nnUNet_preprocessed") / dataset / f"{name}.json"
    origin = {"dataset": target, "plans_name": target_plans}
    if plans_name is not None and path.is_file() and read_json(path).get(MOVED_FROM) != origin:
        raise OccupiedError(
            f"{path} holds other plans already; choose a different name with -overwrite_plans_name."
        ).about(path=path, option="-overwrite_plans_name")
    planner = _planner_of(plans, configuration, planner_classes)(dataset, plans_name=name, num_gpus=num_gpus)
    dataset_json = nnunet_folder("nnUNet_raw") / dataset / "dataset.json"
    moved = copy.deepcopy(plans) | {"dataset_name": dataset, MOVED_FROM: origin}
    rename_plans(moved, name)
    fit = fit_orientation(dataset, target, plans)
    if fit.note:
        logger.warning("%s", fit.note)
    moved["image_reader_writer"], moved[ORIENTATION] = fit.reader, fit.orientation
    gigabytes = gpu_memory_gb or _gigabytes_of_target(planner, plans["configurations"][configuration])
    for content in moved["configurations"].values():
        if _is_trainable(content):
            if not keep_patch:
                content["patch_size"] = _view_size(dataset, moved, content, fit.axes)
            cost = planner.cost(content["architecture"], content["patch_size"])
            content["batch_size"] = planner.pairs(cost, gigabytes, MIN_PAIRS)
            note_gpus(content, num_gpus)
    write_json(path, moved)
    with atomic_write(path.parent / "dataset.json") as temporary:
        shutil.copyfile(dataset_json, temporary)
    planned = _summary(planner, moved, configuration, gigabytes)
    target_patch = tuple(int(n) for n in plans["configurations"][configuration]["patch_size"])
    return planned if planned.patch_size == target_patch else replace(planned, target_patch=target_patch)


def plans_of_target(dataset: str, target: str, target_plans: str, configuration: str) -> dict:
    """Return plans of a target, checked for what :func:`move_target_plans` needs of them.

    Raises:
        NotPreparedError: the target has no such plans.
        InputError: channels, normalisation, configuration or orientation do not fit.
    """
    source = nnunet_folder("nnUNet_preprocessed") / target / f"{target_plans}.json"
    if not source.is_file():
        command = f"nnUNetv2_plan_and_preprocess -d {dataset_number(target)}"
        raise NotPreparedError(f"{source} does not exist; run: {command}").about(path=source, command=command)
    plans = read_json(source)
    check_configuration(plans, configuration, f"{target}/{target_plans}.json")
    _check_channels(dataset, target)
    fit_orientation(dataset, target, plans)
    return plans


def total_stride(strides: Sequence[int | Sequence[int]]) -> tuple[int, int, int]:
    """Return the image voxels a bottleneck voxel stands for, (z, y, x), from the pooling of each stage."""
    return tuple(np.prod([np.broadcast_to(stage, 3) for stage in strides], axis=0).tolist())


def view_size(
    patch_size: Sequence[int], median_shape: Sequence[float], strides: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Return the patch for views of volumes of this shape: at most about two thirds of the volume along every axis.

    Axes that are short enough stay. Others become the multiple of the network's total stride nearest to two thirds of
    the volume (of two equally near ones the smaller). The bottleneck keeps at least two voxels.

    Args:
        patch_size: voxels, (z, y, x).
        median_shape: of the volumes at the plans' spacing, voxels, (z, y, x).
        strides: pooling of each stage, (z, y, x).
    """
    result = []
    for patch, volume, stride in zip(patch_size, median_shape, total_stride(strides), strict=True):
        wanted = MAX_VIEW * volume
        cells = max(MIN_BOTTLENECK if stride > 1 else 1, ceil(wanted / stride - 0.5))
        result.append(int(patch) if patch <= wanted else min(int(patch), cells * stride))
    return tuple(result)


def _view_size(dataset: str, plans: dict, configuration: dict, axes: Sequence[int]) -> list[int]:
    """Return :func:`view_size` by the dataset's fingerprint, whose axes become ``axes`` when read."""
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    fingerprint = read_json(nnunet_folder("nnUNet_preprocessed") / dataset / "dataset_fingerprint.json")
    order = [axes[axis] for axis in plans["transpose_forward"]]
    shapes = [
        compute_new_shape([shape[i] for i in order], [spacing[i] for i in order], configuration["spacing"])
        for shape, spacing in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
    ]
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    return list(view_size(configuration["patch_size"], np.median(shapes, axis=0), strides))


def check_configuration(plans: dict, configuration: str, where: str) -> None:
    """Make sure that plans hold a 3D configuration of this name with a network of its own.

    Raises:
        InputError: they do not.
    """
    configurations = plans["configurations"]
    usable = [name for name, content in configurations.items() if _is_trainable(content)]
    if not usable:
        raise InputError(
            f"{where} has no 3D configuration, only {', '.join(configurations)}; pretraining is 3D only."
        ).about(value=where)
    if configuration not in usable:
        raise InputError(
            f"{where}: '{configuration}' cannot be pretrained; -c must be one of: {', '.join(usable)}."
        ).about(option="-c", value=configuration)


def _is_trainable(configuration: dict) -> bool:
    """Return whether it is 3D and no second stage of a cascade, which wants a segmentation as input."""
    return len(configuration.get("patch_size", ())) == 3 and "architecture" in configuration


def _check_channels(dataset: str, target: str) -> None:
    """Refuse different channels, order or normalisation; warn of different names for the same.

    Of several modalities one has to be normalised as the target's channel is.
    """
    ours = _channel_names("nnUNet_raw", dataset)
    theirs = _channel_names("nnUNet_preprocessed", target)
    modalities = sorted(set(modalities_of(dataset).values()))
    if modalities and len(theirs) == 1:
        if scheme_of(theirs[0]) not in map(scheme_of, modalities):
            raise InputError(
                f"No modality of {dataset} ({', '.join(modalities)}) is normalised as {target} ({theirs[0]}) is; plan "
                "without --target."
            ).about(option="--target", value=dataset)
        return
    if len(ours) != len(theirs):
        raise InputError(
            f"{dataset} has {len(ours)} channel(s) ({', '.join(ours)}), but {target} has {len(theirs)} "
            f"({', '.join(theirs)}); import volumes with the same channels, or plan without --target and "
            "fit the pretrained weights to the target's plans with nnunet_alice transfer."
        ).about(option="--target", value=len(ours), command="nnunet_alice transfer")
    if ours == theirs:
        return
    differs = f"{dataset} has the channels {', '.join(ours)}, but {target} has {', '.join(theirs)}"
    if sorted(ours) == sorted(theirs):
        raise InputError(f"{differs}; import them in the target's order.")
    if [scheme_of(name) for name in ours] != [scheme_of(name) for name in theirs]:
        raise InputError(
            f"{differs}, which nnU-Net normalises differently; import with --channel {' '.join(theirs)}."
        ).about(option="--channel")
    logger.warning("%s; both are normalised alike, so the target's plans are used.", differs)


def _channel_names(variable: str, dataset: str) -> list[str]:
    """Return channel names in the order of their numbers."""
    return [name.casefold() for name in channel_names(read_json(nnunet_folder(variable) / dataset / "dataset.json"))]


def _planner_of(plans: dict, configuration: str, planner_classes: Iterable[type]) -> type:
    """Return the planner built on the one that made the plans; for an unknown one, by the network."""
    residual = "Residual" in plans["configurations"][configuration]["architecture"]["network_class_name"]
    likely = "nnUNetPlannerResEncM" if residual else "ExperimentPlanner"
    by_base: dict[str, type] = {}
    for planner in planner_classes:
        for base in planner.__mro__:
            by_base.setdefault(base.__name__, planner)
    return by_base.get(plans.get("experiment_planner_used", likely), by_base[likely])


def _gigabytes_of_target(planner: Any, configuration: dict) -> float:
    """Return memory that nnU-Net's own training of the target takes, at least what its planner aims at, GB."""
    cost = planner.cost(configuration["architecture"], configuration["patch_size"])
    stock = gigabytes_of_training(cost, planner.memory_reference, configuration["batch_size"])
    return max(stock, planner.standard_gigabytes)


def _summary(planner: Any, plans: dict, configuration: str, target_gigabytes: float) -> Planned:
    content = plans["configurations"][configuration]
    cost = planner.cost(content["architecture"], content["patch_size"])
    planned = Planned(
        planner.plans_identifier,
        tuple(int(n) for n in content["patch_size"]),
        tuple(float(s) for s in content["spacing"]),
        int(content["batch_size"]),
        gigabytes_of_pairs(cost, planner.memory_reference, planner.share(content["batch_size"])),
    )
    if planned.gigabytes > target_gigabytes:
        logger.warning(
            "A step of %d pair(s) on a GPU at patch %s is estimated to take %.1f GB, more than the target of %.1f GB; "
            "fewer pairs would leave the heads without statistics.",
            planner.share(planned.pairs),
            "x".join(map(str, planned.patch_size)),
            planned.gigabytes,
            target_gigabytes,
        )
    return planned


def default_processes() -> int:
    """Return nnU-Net's number of processes (``nnUNet_def_n_proc``), but not more than there are processors."""
    from nnunetv2.configuration import default_num_processes

    return max(1, min(default_num_processes, os.cpu_count() or 1))
