"""Trainers of the demo exist, and both networks train alike but for their start."""

import dataclasses

import pytest

from nnunet_alice.demo.budget import Budget, length, own_budget
from nnunet_alice.trainers import alice, finetuning


@pytest.mark.parametrize("budget", [Budget(), own_budget(6, 5, seed=2, device="cpu")], ids=["phantoms", "own data"])
def test_both_networks_train_alike_but_for_their_start(budget):
    pretrained, scratch = (getattr(finetuning, name).settings for name in (budget.finetuning, budget.scratch))
    assert pretrained.expects_weights and not scratch.expects_weights
    assert dataclasses.replace(scratch, expects_weights=True) == pretrained
    assert not pretrained.task.mirrored and pretrained.run.seed is not None
    for name, module in ((budget.pretraining, alice), (budget.finetuning, finetuning), (budget.scratch, finetuning)):
        run = getattr(module, name).settings.run
        assert length(name) == (run.epochs, run.iterations)
