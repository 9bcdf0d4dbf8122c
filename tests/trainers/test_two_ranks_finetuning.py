"""Fine-tuning on two real gloo processes: the decoder first, then all, with equal weights on both at any time."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.gloo_ranks import needs_distributed, on_ranks
from support.labelled_runs import make_finetuner, stay_in_process, write_labelled, write_splits
from support.small_datasets import set_folders

from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.trainers import finetuning
from nnunet_alice.training.devices import place
from nnunet_alice.training.ranks import wait_for_all_ranks
from nnunet_alice.training.settings import changed

pytestmark = [needs_distributed, pytest.mark.slow]


class FineTuneTrainer_ranks(finetuning.FineTuneTrainer):
    """One epoch of the decoder, one of everything."""

    settings = changed(
        finetuning.FineTuneTrainer.settings,
        {
            **{"run.epochs": 2, "run.iterations": 2, "run.seed": 1},
            **{"optimisation.learning_rate": 1e-2, "optimisation.decoder_first_share": 0.5},
        },
    )


#: what collectives of a validation allow, and how long rank 0 computes metrics after it (seconds)
TIMEOUT, SLOW = 2, 4


class FineTuneTrainer_slowMetrics(FineTuneTrainer_ranks):
    """Keeps a checkpoint; validation is a collective, after which rank 0 alone has work."""

    settings = changed(FineTuneTrainer_ranks.settings, {"validation.keep_at": (50,)})

    def _validate(self, save_probabilities):
        dist.barrier(group=self.impatient)
        time.sleep(SLOW if self.local_rank == 0 else 0)


def on_cpu(trainer_class, folder):
    """A trainer of this rank, as ``nnunet_alice train -device cpu`` makes it."""
    trainer = make_finetuner(trainer_class, folder)
    place(trainer, torch.device("cpu"))
    trainer.initialize()
    return trainer


def results_of(rank, folder, weights):
    with pytest.MonkeyPatch.context() as patch:
        stay_in_process(patch)
        validate_slowly(folder)
        return {"stock": stock_step(folder)} | weights_by_epoch(folder, weights)


def validate_slowly(folder):
    """Validation of a kept checkpoint, then of the current weights."""
    trainer = on_cpu(FineTuneTrainer_slowMetrics, folder)
    trainer.impatient = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    trainer.save_checkpoint(trainer._kept_file(50))
    wait_for_all_ranks()
    trainer.perform_actual_validation()


def stock_step(folder):
    """Weights of nnU-Net's own trainer after a step."""
    trainer = on_cpu(nnUNetTrainer, folder)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    return {name: value.clone() for name, value in trainer.network.module.state_dict().items()}


def weights_by_epoch(folder, weights):
    """Weights before training and after each epoch."""
    trainer = on_cpu(FineTuneTrainer_ranks, folder)
    trainer.load_pretrained_weights(weights)
    trainer.on_train_start()
    found = [_copy(trainer)]
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(next(trainer.dataloader_train))
        found.append(_copy(trainer))
    return {"weights": found, "batch": trainer.batch_size}


def _copy(trainer):
    return {name: value.detach().clone() for name, value in trainer.bare_network.state_dict().items()}


def test_ranks_stay_equal_the_encoder_learns_later_and_slow_metrics_are_waited_for(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    folder = write_labelled(tmp_path / "preprocessed", 3)
    write_splits(folder, (["case00", "case01"], ["case02"]))
    first = make_finetuner(finetuning.FineTuneTrainer_scratch_1epochs_1iterations_seed7, folder)
    first.initialize()
    save_checkpoint({"network_weights": first.network.state_dict()}, tmp_path / "w.pth")
    results = on_ranks(results_of, tmp_path, folder, tmp_path / "w.pth")
    assert sum(result["batch"] for result in results) == first.configuration_manager.batch_size
    start, decoder_only, everything = results[0]["weights"]
    for name, value in start.items():
        encoder = name.startswith("encoder.") or ".encoder." in name
        assert torch.equal(value, decoder_only[name]) == encoder, name
        if encoder and name.endswith("conv.weight"):
            assert not torch.equal(value, everything[name]), name
    for epoch in zip(*(result["weights"] for result in results), strict=True):
        assert all(torch.equal(value, epoch[1][name]) and value.isfinite().all() for name, value in epoch[0].items())
    stock = [result["stock"] for result in results]
    assert all(torch.equal(value, stock[1][name]) and value.isfinite().all() for name, value in stock[0].items())
