"""The memory model: nnU-Net's own count, and never less than what live tensors really add up to."""

import weakref

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_alice.methods.taps import TappedUNet
from nnunet_alice.planning.memory import (
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
    assert 0 < cost.encoder_elements < cost.elements


def test_pairs_and_gigabytes_by_hand():
    # 1 GB holds 140e6 elements; 2**30 / 8 weights take one GB more than in nnU-Net's training.
    cost = NetworkCost(elements=60_000_000, encoder_elements=10_000_000, parameters=2**30 // 8)
    assert pairs_in_memory(cost, REFERENCE, 8) == 7  # (8 - 1) * 140 / (2 * 70)
    assert pairs_in_memory(cost, REFERENCE, 7.9) == 6
    assert pairs_in_memory(cost, REFERENCE, 0.5) == 0
    assert gigabytes_of_pairs(cost, REFERENCE, 7) == pytest.approx(8)
    assert gigabytes_of_training(cost, REFERENCE, 7) == pytest.approx(3)


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensors that are alive; ``peak`` is the most at once."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key, size):
        self.live -= size
        self.known.discard(key)


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_a_view_is_charged_at_least_what_its_tensors_take(kind):
    """Student over masked and unmasked view, then teacher, against nnU-Net's own step, in mixed precision."""
    content = architecture(kind)
    cost = network_cost(content, (64, 64, 64), 1, 2)
    with FakeTensorMode():
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        arguments = (content["network_class_name"], content["arch_kwargs"], content["_kw_requires_import"], 1, 2)
        student = get_network_from_plans(*arguments, allow_init=False, deep_supervision=True)
        teacher = get_network_from_plans(*arguments, allow_init=False, deep_supervision=True)
        views = torch.randn(2, 1, 64, 64, 64)

        def stock():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = sum(output.float().mean() for output in student(views))
            loss.backward()

        def alice():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                masked, whole = TappedUNet(student)(views), TappedUNet(student)(views, 0)
                with torch.no_grad():
                    target = TappedUNet(teacher)(views, 1)
                loss = masked.output.float().mean() + (whole.bottleneck - target.bottleneck).float().square().mean()
            loss.backward()

        peaks = []
        for step in (stock, alice):
            student.zero_grad(set_to_none=True)
            with LiveBytes() as live:
                step()
            peaks.append(live.peak)
    charged = cost.pair_elements / 2 / cost.elements
    assert 1.1 < peaks[1] / peaks[0] <= charged
    assert charged < 1.35 * peaks[1] / peaks[0]
