"""FineTuneTrainer makes no step with gradients that are not finite, says so, and gives up after several in a row."""

import copy
import math

import pytest
import torch
from support.labelled_runs import make_finetuner, stay_in_process, write_labelled, write_splits
from support.pretraining_runs import same_content, training_log
from support.refused import refused

from nnunet_alice.errors import NonFiniteLossError
from nnunet_alice.trainers import finetuning


@pytest.fixture
def trainer(folders, monkeypatch):
    """One that has begun its first epoch of three steps."""
    stay_in_process(monkeypatch)
    folder = write_labelled(folders / "preprocessed", 3)
    write_splits(folder, (["case00", "case01"], ["case02"]))
    trainer = make_finetuner(finetuning.FineTuneTrainer_scratch_1epochs_3iterations_seed1, folder)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def take_step(trainer, bad: bool) -> dict:
    """A step; gives the state of network and optimiser after it."""
    batch = next(trainer.dataloader_train)
    if bad:
        batch["data"][:] = math.nan
    trainer.train_step(batch)
    return copy.deepcopy(
        {"weights": trainer.network.state_dict(), "optimiser": trainer.optimizer.state_dict()["state"]}
    )


def test_a_bad_step_changes_nothing_and_the_next_one_trains(trainer):
    first, bad, after = (take_step(trainer, number == 1) for number in range(3))
    assert same_content(first, bad)
    assert not same_content(bad["weights"], after["weights"])
    assert all(value.isfinite().all() for value in after["weights"].values())
    log = training_log(trainer.output_folder)
    assert log.count("WARNING: the gradients are not finite on the cases case0") == 1


def test_an_epoch_of_bad_steps_ends_the_run(trainer):
    for _ in range(2):
        take_step(trainer, bad=True)
    with refused(NonFiniteLossError, steps=3, what="gradients") as caught:
        take_step(trainer, bad=True)
    assert "case0" in str(caught.value)
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())


def test_a_scaler_decides_where_there_is_one():
    """It leaves the step out itself, and the guard only finds out."""
    from nnunet_alice.training.nonfinite import GuardedOptimizer

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    guard, scaler = GuardedOptimizer(optimizer, scaled=True), torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, skips in ((1.0, False), (math.inf, True), (1.0, False)):
        optimizer.zero_grad()
        scaler.scale(weight.sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert guard.skipped() == skips
    assert torch.equal(weight.detach(), torch.full((2,), -1.0)) and scaler.get_scale() == 2.0
