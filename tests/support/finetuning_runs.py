"""Short runs of FineTuneTrainer on a small labelled dataset."""

from pathlib import Path

import torch
from nnunetv2.run import run_training

from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.trainers import finetuning
from support.labelled_runs import make_finetuner
from support.pretraining_runs import with_settings


def variant(name: str, **optimisation) -> type:
    """A short trainer by its name, as nnU-Net asks for it."""
    return with_settings(getattr(finetuning, name), {f"optimisation.{k}": v for k, v in optimisation.items()}, name)


def short(name="FineTuneTrainer", epochs=2, iterations=2, endings="_seed1", **optimisation) -> type:
    """A trainer of a few steps."""
    return variant(f"{name}_{epochs}epochs_{iterations}iterations{endings}", **optimisation)


def weights_file(dataset, path: Path) -> Path:
    """Pretrained weights for the dataset's network."""
    trainer = make_finetuner(short(endings="_seed77"), dataset)
    trainer.initialize()
    save_checkpoint({"network_weights": trainer.network.state_dict()}, path)
    return path


def start(trainer, weights: Path | None = None):
    """What nnUNetv2_train does before training."""
    if not trainer.was_initialized:
        trainer.initialize()
    if weights is not None:
        run_training.load_pretrained_weights(trainer.network, str(weights), verbose=True)
    return trainer


def copy_of(trainer) -> dict:
    return {name: value.detach().clone() for name, value in trainer.bare_network.named_parameters()}


def changed(trainer, before: dict) -> set[str]:
    return {name for name, value in trainer.bare_network.named_parameters() if not torch.equal(value, before[name])}


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()
