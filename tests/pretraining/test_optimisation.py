"""Optimisers, schedules and clipping of the pretraining methods."""

import pytest
import torch
from torch import nn

from nnunet_alice.methods.schedules import cosine
from nnunet_alice.pretraining.optimisation import Optimisation, clip_each_gradient


def small_module() -> nn.Module:
    module = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2, affine=True), nn.Linear(2, 2))
    module[2].bias.requires_grad_(False)
    return module


def test_adamw_does_not_decay_biases_and_norms():
    module, optimisation = small_module(), Optimisation(warmup_share=0.0, weight_decay_range=(0.1, 0.4))
    optimizer = optimisation.optimizer(module)
    assert isinstance(optimizer, torch.optim.AdamW)
    optimisation.set_rates(optimizer, 30, 100)
    decayed, spared = optimizer.param_groups
    assert {id(p) for p in decayed["params"]} == {id(module[0].weight), id(module[2].weight)}
    assert {id(p) for p in spared["params"]} == {id(module[0].bias), id(module[1].weight), id(module[1].bias)}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (cosine(30, 100, 0.1, 0.4), 0.0)
    assert decayed["lr"] == spared["lr"] == optimisation.learning_rate_at(30, 100)


def test_a_momentum_makes_it_sgd_on_all_that_learns():
    module = small_module()
    optimizer = Optimisation(sgd_momentum=0.8, weight_decay_range=(0.1, 0.1)).optimizer(module)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD) and group["momentum"] == 0.8
    assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("settings", "total", "warmup"),
    [
        ({"warmup_share": 0.0}, 100, 0),
        ({"warmup_share": 0.05}, 100, 5),
        ({"warmup_share": 0.05}, 4, 1),  # one step at least
        ({"warmup_steps": 500}, 20_000, 500),
        ({"warmup_steps": 500}, 100, 10),  # a tenth of the run at most
        ({"warmup_steps": 500}, 4, 1),
    ],
)
def test_the_rate_rises_for_the_warmup_and_falls_to_its_end(settings, total, warmup):
    optimisation = Optimisation(learning_rate=0.1, final_learning_rate=0.001, **settings)
    rates = [optimisation.learning_rate_at(step, total) for step in range(total + 1)]
    assert rates[warmup] == max(rates) == 0.1 and rates[-1] == pytest.approx(0.001)
    assert rates[:warmup] == pytest.approx([0.1 * step / warmup for step in range(warmup)])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_each_gradient_is_clipped_on_its_own():
    short, long = torch.tensor([0.6, 0.8]), torch.tensor([30.0, 40.0])
    clip_each_gradient([short, long], 3.0)
    clip_each_gradient([], 3.0)
    torch.testing.assert_close(short, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(long, torch.tensor([1.8, 2.4]))
