"""Plans foresee what steps take: live bytes of steps of full size, counted on tensors without memory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from support.emulated_cuda import CUDA, emulated_cuda

from nnunet_alice.methods.alice.model import Alice
from nnunet_alice.methods.alice.settings import AliceSettings
from nnunet_alice.methods.drasclr.conversion import to_conditional
from nnunet_alice.methods.drasclr.located import COORDINATE_CHANNELS, LocatedUNet
from nnunet_alice.methods.drasclr.model import DrasCLRModel, PatchEmbedder
from nnunet_alice.methods.drasclr.queue import KeyQueue
from nnunet_alice.planning.memory import (
    cost_of,
    live_bytes_of_pairs,
    live_bytes_of_subjects,
    live_bytes_of_training,
    more_bytes_of_experts,
    network_cost,
)
from nnunet_alice.pretraining.drasclr import DrasCLRMethod, DrasCLRPretrainingSettings
from nnunet_alice.trainers.drasclr_finetuning import DrasCLRFineTuneTrainer

EXPERTS = 8

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


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made within it have no memory, also where their makers ask for the CPU."""
    cpu = torch.Tensor.cpu
    with torch.device("meta"), patch.object(torch.Tensor, "cpu", lambda x: x if x.is_meta else cpu(x)):
        yield


def network(family: str, outputs: int, deep_supervision: bool):
    content = architecture(family)
    names = (content["network_class_name"], content["arch_kwargs"], content["_kw_requires_import"])
    return get_network_from_plans(*names, 1, outputs, allow_init=False, deep_supervision=deep_supervision)


def peak(cuda, optimizer, loss_of_step) -> int:
    """Most live bytes of a step in half precision, once the optimiser has its state."""
    scaler = torch.amp.GradScaler("cuda")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    cuda.forget()
    with torch.autocast("cuda"):
        loss = loss_of_step()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    optimizer.step()
    scaler.update()
    return cuda.peak


def peak_of_stock(network_of, channels: int, edge: int, batch: int) -> int:
    """nnU-Net's own step with deep supervision and three classes."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    own = DC_and_CE_loss(
        dice, {}, weight_ce=1, weight_dice=1, ignore_label=None, dice_class=MemoryEfficientSoftDiceLoss
    )
    loss = DeepSupervisionWrapper(own, (0.5, 0.25, 0.125, 0.0625, 0))
    with without_memory():
        model = network_of()
    with emulated_cuda("meta") as cuda:
        model.to(CUDA)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.99, nesterov=True)
        images = torch.zeros(batch, channels, edge, edge, edge).to(CUDA)
        targets = [torch.zeros(batch, 1, *[edge // 2**level] * 3).to(CUDA) for level in range(5)]
        return peak(cuda, optimizer, lambda: loss(model(images), targets))


def peak_of_alice(family: str, edge: int, pairs: int) -> int:
    with without_memory():
        model = Alice(network(family, 1, False), AliceSettings())
    with emulated_cuda("meta") as cuda:
        model.to(CUDA)
        optimizer = torch.optim.AdamW(model.student.parameters())
        views = torch.zeros(2 * pairs, 1, edge, edge, edge).to(CUDA)
        mask = torch.zeros(2 * pairs, edge, edge, edge, dtype=torch.bool).to(CUDA)
        return peak(cuda, optimizer, lambda: model.compute(views, mask, 0.04).loss)


def peak_of_drasclr(family: str, edge: int, subjects: int, neighbours: int = 2) -> int:
    """A step in evaluation mode, which leaves the queue as it is."""
    with without_memory():
        encoder = network(family, 1, False).encoder
        embedder = PatchEmbedder(to_conditional(encoder, EXPERTS), encoder.output_channels[-1])
        model = DrasCLRModel(embedder, KeyQueue(64, 128)).eval()
    with emulated_cuda("meta") as cuda:
        model.to(CUDA)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
        view = torch.zeros(subjects, 1, edge, edge, edge).to(CUDA)
        around = torch.zeros(neighbours, *view.shape).to(CUDA)
        places, numbers = torch.zeros(1 + neighbours, 3).to(CUDA), torch.zeros(subjects, dtype=torch.int64).to(CUDA)
        return peak(cuda, optimizer, lambda: model(view, view, places[0], 0, numbers, around, places[1:]).total)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("edge", "pairs"), [(128, 2), (64, 2)])
def test_a_step_of_alice_takes_what_plans_foresee(family, edge, pairs):
    cost = network_cost(architecture(family), (edge,) * 3, 1, 1)
    assert 0.97 < live_bytes_of_pairs(cost, pairs) / peak_of_alice(family, edge, pairs) < 1.1


def batch_of_drasclr(family: str, pairs: int, **settings) -> tuple[int, bool]:
    """Subjects of a batch that the method chooses for plans of so many pairs, and whether it warns of memory."""
    lines: list[str] = []
    method = SimpleNamespace(
        context=SimpleNamespace(batch_size=pairs, patch_size=(128,) * 3, log=lines.append),
        settings=DrasCLRPretrainingSettings(**settings),
        crop_size=(64,) * 3,
        places=SimpleNamespace(cases=range(500)),
    )
    plain = network(family, 1, False)
    size = DrasCLRMethod._choose_batch_size(method, plain)  # type: ignore[arg-type]  # what it reads of a method
    return size, any("WARNING" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_drasclr_takes_no_more_than_its_batch_was_chosen_for(family):
    plain = network(family, 1, False)
    cost = cost_of(plain, (128,) * 3)
    elements = plain.encoder.compute_conv_feature_map_size([64] * 3)
    subjects, _ = batch_of_drasclr(family, 2)
    taken = peak_of_drasclr(family, 64, subjects)
    assert 0.97 < live_bytes_of_subjects(cost, EXPERTS, elements, 3, subjects) / taken < 1.25
    assert taken < 1.03 * live_bytes_of_pairs(cost, 2)


@pytest.mark.slow
def test_plans_too_small_for_the_experts_are_warned_of():
    assert batch_of_drasclr("ResidualEncoderUNet", 1) == (2, True)
    assert batch_of_drasclr("ResidualEncoderUNet", 1, num_experts=2) == (3, False)
    assert batch_of_drasclr("PlainConvUNet", 1) == (6, False)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_takes_what_the_scale_is_built_on_and_experts_what_is_said(family):
    plain = network(family, 3, True)
    cost = cost_of(plain, (128,) * 3)
    stock = peak_of_stock(lambda: network(family, 3, True), 1, 128, 2)
    foreseen = live_bytes_of_training(cost, 2)
    assert 0.9 < foreseen / stock < 1.12
    located = peak_of_stock(lambda: LocatedUNet(network(family, 3, True), EXPERTS), 1 + COORDINATE_CHANNELS, 128, 2)
    with without_memory():
        encoder = to_conditional(plain.to("meta").encoder, EXPERTS)
    assert 0.9 < more_bytes_of_experts(encoder, EXPERTS) / (located - stock) < 1.15
    said = what_the_trainer_says(family, encoder)
    assert said.startswith("WARNING") == (located - stock > stock / 4)
    in_all, experts, _, own = (float(number) * 2**30 for number in re.findall(r"[\d.]+(?= )", said))
    assert (in_all / located, experts / (located - stock), own / stock) == pytest.approx((1, 1, 1), rel=0.15)


def what_the_trainer_says(family: str, encoder) -> str:
    """What DrasCLRFineTuneTrainer logs of its memory with two patches of 128 voxels a batch."""
    lines: list[str] = []
    plans = SimpleNamespace(configuration={"architecture": architecture(family)}, patch_size=(128,) * 3)
    trainer = SimpleNamespace(
        bare_network=SimpleNamespace(encoder=encoder),
        configuration_manager=plans,
        settings=DrasCLRFineTuneTrainer.settings,
        num_input_channels=1 + COORDINATE_CHANNELS,
        label_manager=SimpleNamespace(num_segmentation_heads=3),
        batch_size=2,
        print_to_log_file=lines.append,
    )
    DrasCLRFineTuneTrainer._say_what_experts_take(trainer)  # type: ignore[arg-type]  # what it reads of a trainer
    return lines[0]
