"""Small nnU-Net plans of both encoders, any depth, kernels, strides and widths."""

import pytest
from support.plans import architecture, configuration, minimal_plans


def make_plans(
    kind: str = "plain", stages: int = 4, anisotropic: bool = False, width: int = 2, dim: int = 3, **changes
) -> dict:
    """Plans with one configuration ``3d_fullres`` of a U-Net with ``width`` features in its first stage.

    ``anisotropic``: the first two stages have kernels (1, 3, 3), the first downsampling has stride (1, 2, 2).
    """
    kernels, strides = [[3] * dim for _ in range(stages)], [[1] * dim] + [[2] * dim for _ in range(stages - 1)]
    if anisotropic:
        kernels[0][0] = kernels[1][0] = strides[1][0] = 1
    family = "PlainConvUNet" if kind == "plain" else "ResidualEncoderUNet"
    network = architecture(family, strides, [min(width * 2**s, width * 8) for s in range(stages)], 2, kernels)
    network["arch_kwargs"].update(changes)
    base = configuration([3.0, 1.0, 1.0] if anisotropic else [1.0, 1.0, 1.0], architecture=network)
    full = {"inherits_from": "3d_base", "patch_size": [64] * dim}
    return minimal_plans("Dataset900_Test", {"3d_base": base, "3d_fullres": full})


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
