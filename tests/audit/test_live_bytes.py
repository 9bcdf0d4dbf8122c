"""Plans foresee what steps take: live bytes of steps of full size, counted on tensors without memory."""

import pytest
import torch
from emulated_cuda import CUDA, emulated_cuda
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_alice.methods.alice.model import Alice
from nnunet_alice.methods.alice.settings import AliceSettings
from nnunet_alice.planning.memory import ALICE, STOCK, live_bytes_of_pairs, network_cost

FEATURES = (32, 64, 128, 256, 320, 320)
FAMILIES = {
    "PlainConvUNet": ("n_conv_per_stage", (2,) * 6, 2),
    "ResidualEncoderUNet": ("n_blocks_per_stage", (1, 3, 4, 6, 6, 6), 1),
}


def architecture(family: str) -> dict:
    """What nnU-Net's planners choose for large volumes."""
    depth, blocks, decoder = FAMILIES[family]
    stages = len(FEATURES)
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(FEATURES),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        depth: list(blocks),
        "n_conv_per_stage_decoder": [decoder] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{family}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def network(family: str, outputs: int, deep_supervision: bool):
    content = architecture(family)
    names = (content["network_class_name"], content["arch_kwargs"], content["_kw_requires_import"])
    return get_network_from_plans(*names, 1, outputs, allow_init=False, deep_supervision=deep_supervision)


def peak(cuda, optimizer, loss_of_step) -> int:
    """Most live bytes of a step in half precision, after a first one has made the optimiser's state."""
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(2):
        cuda.forget()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            loss = loss_of_step()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        optimizer.step()
        scaler.update()
    return cuda.peak


def peak_of_stock(family: str, edge: int, batch: int) -> int:
    """nnU-Net's own step with deep supervision and three classes."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    both = DC_and_CE_loss(
        dice, {}, weight_ce=1, weight_dice=1, ignore_label=None, dice_class=MemoryEfficientSoftDiceLoss
    )
    loss = DeepSupervisionWrapper(both, (0.5, 0.25, 0.125, 0.0625, 0))
    with emulated_cuda("meta") as cuda:
        model = network(family, 3, True).to(CUDA)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.99, nesterov=True)
        images = torch.zeros(batch, 1, edge, edge, edge).to(CUDA)
        targets = [torch.zeros(batch, 1, *[edge // 2**level] * 3).to(CUDA) for level in range(5)]
        return peak(cuda, optimizer, lambda: loss(model(images), targets))


def peak_of_alice(family: str, edge: int, pairs: int) -> int:
    with emulated_cuda("meta") as cuda:
        model = Alice(network(family, 1, False), AliceSettings()).to(CUDA)
        optimizer = torch.optim.AdamW(model.student.parameters())
        views = torch.zeros(2 * pairs, 1, edge, edge, edge).to(CUDA)
        mask = torch.zeros(2 * pairs, edge, edge, edge, dtype=torch.bool).to(CUDA)
        return peak(cuda, optimizer, lambda: model.compute(views, mask, 0.04).loss)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("edge", "pairs"), [(128, 2), (64, 2)])
def test_a_step_of_alice_takes_what_plans_foresee(family, edge, pairs):
    cost = network_cost(architecture(family), (edge,) * 3, 1, 1)
    assert 0.97 < live_bytes_of_pairs(cost, pairs) / peak_of_alice(family, edge, pairs) < 1.1
    assert ALICE.fixed(cost) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_stock_nnunet_takes_what_the_scale_is_built_on(family):
    cost = network_cost(architecture(family), (128,) * 3, 1, 3)
    foreseen = STOCK.fixed(cost) + 2 * STOCK.sample(cost)
    assert 0.9 < foreseen / peak_of_stock(family, 128, 2) < 1.12
