"""Fine-tuning's schedules against their formulas, layer groups against a naive count."""

import pytest
import torch
from support.refused import refused
from support.tiny_networks import tiny_unet

from nnunet_alice.errors import InputError
from nnunet_alice.finetuning.parts import (
    FineTuneSchedule,
    GroupRates,
    layer_groups,
    load_all_but_segmentation,
    short_momentum,
    warmup_poly,
)


def test_warmup_then_nnunets_decay():
    rates = [warmup_poly(step, 100, 10, 0.01) for step in range(101)]
    assert rates[:10] == pytest.approx([0.001 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([0.01 * (1 - step / 90) ** 0.9 for step in range(91)])
    assert min(rates[:100]) > 0 and max(rates) == pytest.approx(0.01) and rates[100] == 0


def test_without_warmup_it_is_stock_nnunets_schedule():
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    stock = PolyLRScheduler(optimizer, 0.01, 50)
    for step in range(50):
        stock.step(step)
        assert warmup_poly(step, 50, 0, 0.01) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_decoders_own_phase_warms_up_twice():
    schedule = FineTuneSchedule(total=100, warmup=4, peak=1.0, decoder_only=20)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert schedule(19) == 1.0
    assert [schedule(step) for step in range(20, 100)] == pytest.approx([warmup_poly(s, 80, 4, 1.0) for s in range(80)])


@pytest.mark.parametrize("family", ["plain", "residual"])
def test_every_parameter_is_in_one_group_and_deeper_stages_learn_faster(family):
    network = tiny_unet(family)
    groups = layer_groups(network, 0.5)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in network.parameters())
    scale = {name: group["scale"] for group in groups for name in group["names"]}
    for name, value in scale.items():
        if name.startswith("decoder."):
            assert value == 1
        elif name.startswith("encoder.stages."):
            assert value == 0.5 ** (3 - int(name.split(".")[2]))
        else:
            assert name.startswith("encoder.stem.") and value == 0.5**3
    assert groups[0]["scale"] == 1


def test_no_decay_is_one_group_and_frozen_parameters_are_left_out():
    network = tiny_unet()
    (group,) = layer_groups(network, 1.0)
    assert len(group["params"]) == len(list(network.parameters()))
    network.encoder.requires_grad_(False)
    (group,) = layer_groups(network, 0.5)
    assert all(name.startswith("decoder.") for name in group["names"])


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1])
def test_senseless_decay_is_refused(decay):
    with refused(InputError, value=decay):
        layer_groups(tiny_unet(), decay)


def test_decay_needs_encoder_stages():
    with refused(InputError, value=None):
        layer_groups(torch.nn.Linear(2, 2), 0.5)


def test_group_rates_scale_the_schedule():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "scale": scale} for scale in (1.0, 0.25)]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    rates = GroupRates(optimizer, lambda step: 0.1 * step, iterations=5)
    rates.step(2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.25])
    rates.set(11)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.1, 0.275])


def test_loading_copies_all_but_segmentation_layers_and_counts_parameters():
    network, other = tiny_unet(), tiny_unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {name: torch.full_like(value, 7) for name, value in other.state_dict().items()}
    count = load_all_but_segmentation(network, weights, "file.pth", "mend it")
    own = [name for name, _ in network.named_parameters() if ".seg_layers." not in name]
    assert count == len(own) > 0
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if ".seg_layers." in name else weights[name]), name


def test_momentum_is_stock_but_for_short_runs():
    assert short_momentum(250_000) == short_momentum(2000) == 0.99
    assert short_momentum(400) == pytest.approx(0.95)
    assert short_momentum(200) == short_momentum(2) == 0.9
