"""The least of nnU-Net's plans that its managers take, with networks of any depth, kernels, strides and widths."""

from collections.abc import Sequence
from typing import Any

import numpy as np

UNETS = "dynamic_network_architectures.architectures.unet."


def architecture(
    family: str, strides: Sequence, features: Sequence[int], convolutions: int = 1, kernels: Sequence | None = None
) -> dict[str, Any]:
    """Entry ``architecture`` of the plans, as nnU-Net's planners write it; ``convolutions`` a stage."""
    stages, dim = len(features), len(strides[0])
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[3] * dim] * stages if kernels is None else list(kernels),
        "strides": list(strides),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
        "n_conv_per_stage" if family == "PlainConvUNet" else "n_blocks_per_stage": [convolutions] * stages,
    }
    return {
        "network_class_name": UNETS + family,
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(spacing: Sequence[float], patch_size: Sequence[int] = (16, 16, 16), **entries: Any) -> dict[str, Any]:
    """A configuration of ``nnUNetPlans`` without a network; ``entries`` replace and add."""
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "spacing": list(spacing),
        "batch_dice": False,
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
    } | entries


def normalised_by(scheme: str, channels: int = 1, masked: bool = False) -> dict[str, Any]:
    """Entries of a configuration: every channel by the same scheme."""
    return {"normalization_schemes": [scheme] * channels, "use_mask_for_norm": [masked] * channels}


def resampled(order: int = 1, kinds: Sequence[str] = ("data", "seg", "probabilities")) -> dict[str, Any]:
    """Entries of a configuration: nnU-Net's resampling of images with splines of ``order``, of labels with 1."""
    entries: dict[str, Any] = {}
    for kind in kinds:
        of_kind = {"is_seg": kind == "seg", "order": 1 if kind == "seg" else order, "order_z": 0}
        entries[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        entries[f"resampling_fn_{kind}_kwargs"] = of_kind | {"force_separate_z": None}
    return entries


def minimal_plans(
    dataset: str, configurations: dict[str, dict], transpose: Sequence[int] = (0, 1, 2), **entries: Any
) -> dict[str, Any]:
    """Plans ``nnUNetPlans`` of a dataset; ``entries`` replace and add."""
    return {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "label_manager": "LabelManager",
        "configurations": configurations,
    } | entries
