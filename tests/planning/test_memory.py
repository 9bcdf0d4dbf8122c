"""The memory model: nnU-Net's own count, and the arithmetic; ``tests/audit/test_live_bytes.py`` holds its numbers."""

import pytest
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_alice.planning.memory import (
    ALICE,
    STOCK,
    MemoryReference,
    NetworkCost,
    gigabytes_of_pairs,
    gigabytes_of_training,
    network_cost,
    pairs_in_memory,
)

REFERENCE = MemoryReference(elements=560e6, batch_size=2, gigabytes=8)


def architecture(kind):
    stages = 5
    kwargs = {
        "n_stages": stages,
        "features_per_stage": [32, 64, 128, 256, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage_decoder": [2 if kind is PlainConvUNet else 1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    if kind is PlainConvUNet:
        kwargs["n_conv_per_stage"] = [2] * stages
    else:
        kwargs["n_blocks_per_stage"] = [1, 3, 4, 6, 6]
    return {
        "network_class_name": f"{kind.__module__}.{kind.__name__}",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def test_elements_are_those_that_nnunet_counts():
    content = architecture(PlainConvUNet)
    cost = network_cost(content, (32, 48, 64), 2, 3)
    expected = ExperimentPlanner.static_estimate_VRAM_usage(
        (32, 48, 64), 2, 3, content["network_class_name"], content["arch_kwargs"], content["_kw_requires_import"]
    )
    assert cost.elements == expected


def test_pairs_and_gigabytes_by_hand():
    cost = NetworkCost(elements=60_000_000, parameters=2**30 // 8)
    pair = 2 * ALICE.element * 60e6
    fixed = ALICE.parameter * 2**30 / 8 + ALICE.rest
    # nnU-Net's 8 GB against the live bytes of that step: what live bytes really take
    factor = 8 * 2**30 / (STOCK.element * REFERENCE.elements * REFERENCE.batch_size + STOCK.parameter * 2**30 / 8)
    for gigabytes in (8, 12, 24):
        assert pairs_in_memory(cost, REFERENCE, gigabytes) == int((gigabytes * 2**30 / factor - fixed) // pair)
    assert pairs_in_memory(cost, REFERENCE, 0.5) == 0
    assert gigabytes_of_pairs(cost, REFERENCE, 7) == pytest.approx((fixed + 7 * pair) * factor / 2**30)
    assert gigabytes_of_training(cost, REFERENCE, 7) == pytest.approx(3)
