"""Plans for pretraining with Alice from unlabelled data alone, on top of nnU-Net's planners.

What differs from nnU-Net's plans of the same data:

- ``batch_size`` is the number of *pairs of views* of a step, sized for a student and a teacher within the memory
  target (see :mod:`nnunet_alice.planning.memory`). At least four pairs, since the heads normalise over the batch; the
  patch shrinks until they fit. Where there are more than four cases, no more pairs than cases are planned.
- every axis of the patch is made of at least four whole blocks of the mask
  (:func:`nnunet_alice.views.masking.block_shape`) and stays divisible by the network's total stride.

Spacing, normalisation, network and the 2D configuration are nnU-Net's own decisions. All classes named in the plans are
nnU-Net's, so that every nnU-Net command reads them.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_alice.anatomy.orientation import ORIENTATION
from nnunet_alice.dataset import note_gpus
from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.nnunet_folders import nnunet_folder
from nnunet_alice.planning.memory import (
    MemoryReference,
    NetworkCost,
    network_cost,
    pair_budget,
    pair_bytes,
    pairs_in_memory,
)
from nnunet_alice.planning.orientations import array_orientation
from nnunet_alice.planning.plans import total_stride
from nnunet_alice.views.masking import MIN_BLOCKS, block_shape


def maskable_patch(patch_size: Sequence[int], strides: Sequence[Sequence[int]], min_edge_vox: int) -> tuple[int, ...]:
    """Return the nearest patch that splits into whole mask blocks, at least four along every axis.

    Smaller is preferred (it never takes more memory); an axis grows only when nothing smaller will do, as with three
    slices. The number of poolings does not change: an axis stays divisible by its total stride, and at least
    ``min_edge_vox`` voxels long at the bottleneck.

    Args:
        patch_size: voxels, (z, y, x).
        strides: pooling of each stage, (z, y, x).
        min_edge_vox: shortest edge of a feature map.
    """
    result = []
    for length, stride in zip(patch_size, total_stride(strides), strict=True):
        smaller = range(int(length), min_edge_vox * stride - 1, -stride)
        larger = range(int(length), max(int(length), MIN_BLOCKS * stride) + stride, stride)
        result.append(next(n for n in (*smaller, *larger) if _has_whole_blocks(n)))
    return tuple(result)


def _has_whole_blocks(length: int) -> bool:
    (block,) = block_shape([length])
    return length % block == 0 and length // block >= MIN_BLOCKS


class _NoPatchError(Exception):
    """nnU-Net's search for a patch does not end with one."""


class _Estimates(dict):
    """Estimates of one search of nnU-Net, by patch; it reads one only where it goes in circles.

    It does where the shortest edge of a feature map is odd: of 80 voxels it takes 8, and 72 grow to 80 for the network.
    """

    def __getitem__(self, patch: str) -> float:
        raise _NoPatchError


class PairPlanning:
    """What the planners below add to a planner of nnU-Net (mix in before it).

    Attributes:
        min_pairs: fewest pairs of views in a step.
        standard_plans_name: identifier of the plans.
        standard_gigabytes: memory target where none is given, GB.
        num_gpus: GPUs that train together; each gets the same number of pairs, and has the memory target for itself.
    """

    min_pairs = 4
    standard_plans_name: str
    # nnU-Net's, which declares no types
    dataset_name: str
    dataset_json: dict
    dataset: dict
    plans_identifier: str
    UNet_reference_val_3d: float
    UNet_reference_val_corresp_bs_3d: int
    UNet_reference_val_corresp_GB: float
    UNet_vram_target_GB: float
    UNet_featuremap_min_edge_length: int
    standard_gigabytes: float = 8

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        num_gpus: int = 1,
    ) -> None:
        self.num_gpus = num_gpus
        with warnings.catch_warnings():
            # nnU-Net warns about every memory target but its own; here it is a plain option.
            warnings.simplefilter("ignore")
            super().__init__(  # type: ignore[call-arg]  # of the planner that this is mixed into
                dataset_name_or_id,
                gpu_memory_target_in_gb or self.standard_gigabytes,
                preprocessor_name,
                plans_name or self.standard_plans_name,
                overwrite_target_spacing,
                suppress_transpose,
            )

    @property
    def memory_reference(self) -> MemoryReference:
        """nnU-Net's measurement that this planner's estimates are held against."""
        return MemoryReference(
            self.UNet_reference_val_3d, self.UNet_reference_val_corresp_bs_3d, self.UNet_reference_val_corresp_GB
        )

    def cost(self, architecture: dict, patch_size: Sequence[int]) -> NetworkCost:
        """Return the size of a network of this dataset's channels at a patch size."""
        channels = self.dataset_json["channel_names" if "channel_names" in self.dataset_json else "modality"]
        return network_cost(architecture, patch_size, len(channels), len(self.dataset_json["labels"]))

    def pairs(self, cost: NetworkCost, gigabytes: float, min_pairs: int | None = None) -> int:
        """Return pairs of views per step: what fits, not more than there are cases, but never fewer than ``min_pairs``.

        A multiple of ``num_gpus``, and at least one pair for each.

        Args:
            cost: size of the network at the patch.
            gigabytes: memory target of a GPU, GB.
            min_pairs: bound of this call, that of the class if not given.
        """
        fitting = min(pairs_in_memory(cost, self.memory_reference, gigabytes), len(self.dataset) // self.num_gpus)
        return self.num_gpus * max(fitting, self.share(self.min_pairs if min_pairs is None else min_pairs))

    def share(self, pairs: int) -> int:
        """Return pairs on the GPU that gets most of them."""
        return -(-pairs // self.num_gpus)

    def static_estimate_VRAM_usage(
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Estimate that makes nnU-Net shrink the patch until a GPU's share of ``min_pairs`` fits (3D only).

        nnU-Net compares the number with its reference for the memory target; ours is above that reference exactly
        when the pairs take more than the target. (A static method in nnU-Net, but called on the instance.)

        Raises:
            InputError: not even a small patch fits the memory target.
        """
        architecture = {
            "network_class_name": arch_class_name,
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": arch_kwargs_req_import,
        }
        cost = network_cost(architecture, patch_size, input_channels, output_channels)
        if len(patch_size) == 2:
            return cost.elements
        if min(patch_size) < 1:
            raise _NoPatchError
        reference = self.memory_reference
        available = pair_budget(cost, reference, self.UNet_vram_target_GB)
        pairs = self.share(self.min_pairs)
        needed = pairs * pair_bytes(cost)
        if needed > available and max(patch_size) <= 4 * self.UNet_featuremap_min_edge_length:
            smallest = "x".join(str(int(n)) for n in patch_size)
            raise InputError(
                f"{pairs} pair(s) of views do not fit into {self.UNet_vram_target_GB:g} GB even with "
                f"patches of {smallest} voxels; raise -gpu_memory_target."
            ).about(option="-gpu_memory_target", value=pairs)
        target = reference.elements * self.UNet_vram_target_GB / reference.gigabytes
        return target * needed / max(available, 1.0)

    def shapes_for_patch(self, spacing: Sequence[float], median_shape: Sequence[float]) -> Iterator[Sequence[float]]:
        """Yield shapes, voxels, whose aspect the patch may keep while it shrinks; the first that gives a patch counts.

        They are the median volume, as in nnU-Net, then what ever smaller cubes leave of it.
        """
        yield median_shape
        edge_mm = np.multiply(median_shape, spacing).max()
        while True:
            edge_mm *= 0.97
            yield np.minimum(median_shape, edge_mm / np.asarray(spacing)).tolist()

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        """Return nnU-Net's configuration, in 3D with a patch for block masks and pairs of views for a batch."""
        nnunets = super().get_plans_for_configuration  # type: ignore[misc]  # mixed in before nnU-Net's planner
        if len(spacing) == 2:
            return nnunets(spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        for shape in self.shapes_for_patch(spacing, median_shape):
            with contextlib.suppress(_NoPatchError):
                plan = nnunets(spacing, shape, data_identifier, approximate_n_voxels_dataset, _Estimates())
                break
        plan["median_image_size_in_voxels"] = median_shape
        architecture = plan["architecture"]
        plan["patch_size"] = maskable_patch(
            plan["patch_size"], architecture["arch_kwargs"]["strides"], self.UNet_featuremap_min_edge_length
        )
        plan["batch_size"] = self.pairs(self.cost(architecture, plan["patch_size"]), self.UNet_vram_target_GB)
        note_gpus(plan, self.num_gpus)
        return plan

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return one identifier for all planners below, as nnU-Net does: preprocessed cases are shared."""
        if configuration_name in ("2d", "3d_fullres") and self.plans_identifier == self.standard_plans_name:
            return f"{AlicePlanner.standard_plans_name}_{configuration_name}"
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict) -> None:
        """Write the plans, whole or not at all; configurations that somebody added by hand are kept, as in nnU-Net."""
        recursive_fix_for_json_export(plans)
        path = nnunet_folder("nnUNet_preprocessed") / self.dataset_name / f"{self.plans_identifier}.json"
        plans[ORIENTATION] = array_orientation(self.dataset_name, plans["image_reader_writer"])
        if path.is_file():
            plans["configurations"] = {**read_json(path)["configurations"], **plans["configurations"]}
        write_json(path, plans)


class AlicePlanner(PairPlanning, ExperimentPlanner):
    """Plans for Alice with nnU-Net's PlainConvUNet; 8 GB unless told otherwise."""

    standard_plans_name = "AlicePlans"


class AlicePlannerSmall(PairPlanning, ExperimentPlanner):
    """Plans for trying things out without a GPU: 8 to 64 features, patches of at most 24^3 voxels, 4 pairs.

    Voxels are so coarse that the median volume has at most 100^3 of them: a patch is to show some anatomy.
    """

    standard_plans_name = "AliceSmallPlans"
    max_patch_vox = 24**3
    max_volume_vox = 100**3

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.UNet_base_num_features = 8
        self.UNet_max_features_3d = 64

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """Return nnU-Net's spacing, mm, coarser on its finest axes where the median volume would be too large."""
        finest = super().determine_fullres_target_spacing()
        sizes = np.array(self.dataset_fingerprint["shapes_after_crop"]) * self.dataset_fingerprint["spacings"]
        spacing, edge = finest, finest.min()
        while np.median((sizes / spacing).prod(axis=1)) > self.max_volume_vox:
            edge *= 1.03
            spacing = np.maximum(finest, edge)
        return spacing

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return an identifier of its own: coarser cases lie apart from those of the other planners."""
        if np.array_equal(self.determine_fullres_target_spacing(), super().determine_fullres_target_spacing()):
            return super().generate_data_identifier(configuration_name)
        return f"{self.plans_identifier}_{configuration_name}"

    def shapes_for_patch(self, spacing: Sequence[float], median_shape: Sequence[float]) -> Iterator[Sequence[float]]:
        """Yield the median volume, then what cubes leave of it, the first of eight patches."""
        shapes = super().shapes_for_patch(spacing, median_shape)
        yield next(shapes)
        yield from filter(self._has_eight_patches, shapes)

    def _has_eight_patches(self, shape: Sequence[float]) -> bool:
        """Return whether a shape holds no more voxels than eight patches."""
        return bool(np.prod(shape) <= 8 * self.max_patch_vox)

    def pairs(self, cost: NetworkCost, gigabytes: float, min_pairs: int | None = None) -> int:
        """Return about ``min_pairs``: time is short here, not memory."""
        return self.num_gpus * self.share(self.min_pairs)

    def static_estimate_VRAM_usage(
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict,
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Estimate that makes nnU-Net shrink the patch to ``max_patch_vox`` voxels, whatever memory there is."""
        estimate = super().static_estimate_VRAM_usage(
            patch_size, input_channels, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
        )
        if len(patch_size) == 3 and prod(patch_size) > self.max_patch_vox:
            return max(estimate, 2 * self.UNet_reference_val_3d * self.UNet_vram_target_GB)
        return estimate


class AlicePlannerCoarse(AlicePlannerSmall):
    """Plans for short runs on large volumes without a GPU: the median volume has at most 64^3 voxels.

    A patch is a cube where the volume lets it be one, and shows about a third of it along each axis. The network has a
    stage more than nnU-Net would give it: worth twelve points of Dice on abdominal CT (docs/results/objectives.md).
    Small organs are lost.
    """

    standard_plans_name = "AliceCoarsePlans"
    max_volume_vox = 64**3

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.UNet_featuremap_min_edge_length = 3

    def shapes_for_patch(self, spacing: Sequence[float], median_shape: Sequence[float]) -> Iterator[Sequence[float]]:
        """Yield cubes alone, as far as the median volume reaches, the first of eight patches."""
        shapes = super().shapes_for_patch(spacing, median_shape)
        return filter(self._has_eight_patches, shapes)


class AlicePlannerResEncM(PairPlanning, nnUNetPlannerResEncM):
    """Plans for Alice with a residual encoder, for GPUs of 9 to 11 GB."""

    standard_plans_name = "AliceResEncUNetMPlans"


class AlicePlannerResEncL(PairPlanning, nnUNetPlannerResEncL):
    """Plans for Alice with a residual encoder, for GPUs of 24 GB."""

    standard_plans_name = "AliceResEncUNetLPlans"
    standard_gigabytes = 24


class AlicePlannerResEncXL(PairPlanning, nnUNetPlannerResEncXL):
    """Plans for Alice with a residual encoder, for GPUs of 40 GB."""

    standard_plans_name = "AliceResEncUNetXLPlans"
    standard_gigabytes = 40
