"""Small nnU-Net plans of both encoders, any depth, kernels, strides and widths."""

import pytest

UNETS = "dynamic_network_architectures.architectures.unet"


def make_plans(
    kind: str = "plain", stages: int = 4, anisotropic: bool = False, width: int = 2, dim: int = 3, **changes
) -> dict:
    """Plans with one configuration ``3d_fullres`` of a U-Net with ``width`` features in its first stage.

    ``anisotropic``: the first two stages have kernels (1, 3, 3), the first downsampling has stride (1, 2, 2).
    """
    kernels, strides = [[3] * dim for _ in range(stages)], [[1] * dim] + [[2] * dim for _ in range(stages - 1)]
    if anisotropic:
        kernels[0][0] = kernels[1][0] = strides[1][0] = 1
    network = {
        "n_stages": stages,
        "features_per_stage": [min(width * 2**s, width * 8) for s in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    network["n_conv_per_stage" if kind == "plain" else "n_blocks_per_stage"] = [2] * stages
    network.update(changes)
    return {
        "dataset_name": "Dataset900_Test",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_base": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "spacing": [3.0, 1.0, 1.0] if anisotropic else [1.0, 1.0, 1.0],
                "architecture": {
                    "network_class_name": f"{UNETS}.{'PlainConvUNet' if kind == 'plain' else 'ResidualEncoderUNet'}",
                    "arch_kwargs": network,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            },
            "3d_fullres": {"inherits_from": "3d_base", "patch_size": [64] * dim, "batch_size": 2},
        },
    }


def make_network(plans: dict, channels: int = 1, classes: int = 3):
    """The network of ``make_plans``, freshly initialised by nnU-Net."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans).get_configuration("3d_fullres")
    return get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        channels,
        classes,
        deep_supervision=False,
    )


@pytest.fixture(name="make_plans")
def _make_plans():
    return make_plans


@pytest.fixture(name="make_network")
def _make_network():
    return make_network
