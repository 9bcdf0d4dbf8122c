"""Trainers of the demo exist, and both networks train alike but for their start."""

import dataclasses

import pytest
from support.refused import refused

from nnunet_alice.demo.budget import EMBEDDING, TRAINERS, Budget, length, own_budget
from nnunet_alice.errors import InputError
from nnunet_alice.trainers import alice, finetuning

OWN = own_budget(6, 5, seed=2, device="cpu")
ON_REGIONS = own_budget(6, 5, seed=2, device="cpu", regions=True)
ON_A_GPU = own_budget(6, 5, seed=2, device="cuda")


@pytest.mark.parametrize("budget", [Budget(), OWN, ON_REGIONS, ON_A_GPU], ids=["phantoms", "own", "regions", "GPU"])
def test_both_networks_train_alike_but_for_their_start(budget):
    pretrained, scratch = (getattr(finetuning, name).settings for name in (budget.finetuning, budget.scratch))
    assert pretrained.expects_weights and not scratch.expects_weights
    assert dataclasses.replace(scratch, expects_weights=True) == pretrained
    assert not pretrained.task.mirrored and pretrained.run.seed is not None
    for name, module in ((budget.pretraining, alice), (budget.finetuning, finetuning), (budget.scratch, finetuning)):
        run = getattr(module, name).settings.run
        assert length(name) == (run.epochs, run.iterations)


def test_classes_are_weighted_in_short_runs_unless_they_are_regions():
    settings = [getattr(finetuning, budget.finetuning).settings.task for budget in (OWN, ON_REGIONS, ON_A_GPU)]
    assert [task.weighted_classes for task in settings] == [True, False, False]


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_pretraining_that_is_asked_for_runs(name, device):
    trainer = getattr(alice, own_budget(6, 5, seed=2, device=device, trainer=name).pretraining)
    assert issubclass(trainer, getattr(alice, name)) and trainer.settings.run.epochs == 6


def test_an_embedding_is_not_trained_for_a_trainer_that_matches_nothing():
    assert own_budget(6, 5, seed=2, device="cpu", embedding=EMBEDDING, trainer="AliceTrainer").embedding == EMBEDDING
    with refused(InputError, option="--embedding", value="MIMTrainer"):
        own_budget(6, 5, seed=2, device="cpu", embedding=EMBEDDING, trainer="MIMTrainer")
