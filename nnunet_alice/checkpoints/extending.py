"""Continue a finished pretraining for more epochs: what its checkpoint has to say so that the trainer goes on."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.errors import CheckpointError, InputError, OccupiedError

#: endings of a trainer's name that extending replaces
_LENGTH = r"\d+epochs?|restart\d+"
_RATE = r"lr[\d.]+(?:e-?\d+)?"
_FINAL, _LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"


@dataclass(frozen=True)
class Extended:
    """A run that is ready to be continued.

    Attributes:
        folder: of the longer run, with the checkpoint to continue from.
        trainer: name of its trainer.
        dataset: full name of the dataset.
        configuration: of the run.
        fold: of the run.
        plans_name: of the run.
        done: epochs that are done.
        epochs: epochs of the longer run.
        learning_rate: peak of the second part.
    """

    folder: Path
    trainer: str
    dataset: str
    configuration: str
    fold: int | str
    plans_name: str
    done: int
    epochs: int
    learning_rate: float


def extend_run(run_folder: str | os.PathLike, epochs: int, learning_rate: float | None = None) -> Extended:
    """Make the folder of a longer run that goes on where a finished pretraining ended.

    The new folder lies beside the old one, which stays as it is. Weights, teacher, optimiser and history are kept. All
    schedules (learning rate with its warm-up, weight decay, teacher) begin again and run over the added epochs; the
    method's own warm-ups by epoch do not.

    Args:
        run_folder: ``fold_X`` of a finished pretraining.
        epochs: of the longer run in all, more than were done.
        learning_rate: peak of the added epochs; that of the first ones by default.

    Raises:
        CheckpointError: the folder holds no finished pretraining.
        InputError: too few epochs, or the longer run has begun.
    """
    run_folder = Path(run_folder).resolve()
    checkpoint = load_checkpoint(run_folder / _FINAL)
    run = checkpoint.get("pretraining")
    if run is None or "optimizer_state" not in checkpoint:
        raise CheckpointError(
            f"{run_folder / _FINAL} is no checkpoint of a pretraining trainer with its optimiser."
        ).about(path=run_folder / _FINAL)
    settings, done = run["hyper_parameters"], run["epochs_done"]
    if done < settings["epochs"]:
        raise CheckpointError(
            f"{run_folder} has done {done} of {settings['epochs']} epochs; finish it with nnUNetv2_train ... --c first."
        ).about(path=run_folder, value=done)
    if epochs <= done:
        raise InputError(
            f"--epochs {epochs} is the length in all; {run_folder} has {done} already, so give more."
        ).about(path=run_folder, option="--epochs", value=done)
    changes = {"epochs": epochs, "restart": done}
    trainer = f"{_without(run['trainer'], _LENGTH)}_{epochs}epochs_restart{done}"
    if learning_rate is not None:
        learning_rate = float(f"{learning_rate:g}")  # as its name says it
        trainer = f"{_without(trainer, _RATE)}_lr{learning_rate:g}"
        changes["learning_rate"] = learning_rate
    folder = run_folder.parent.with_name(f"{trainer}__{run['plans_name']}__{run['configuration']}") / run_folder.name
    if any(folder.glob("checkpoint_*.pth")):
        raise OccupiedError(
            f"{folder} has begun already; continue it with nnUNetv2_train ... -tr {trainer} --c."
        ).about(path=folder)
    run = run | {"trainer": trainer, "hyper_parameters": settings | changes}
    save_checkpoint(checkpoint | {"pretraining": run, "trainer_name": trainer}, folder / _LATEST)
    rate = float(changes.get("learning_rate", settings["learning_rate"]))
    return Extended(
        folder, trainer, run["dataset_name"], run["configuration"], run["fold"], run["plans_name"], done, epochs, rate
    )


def _without(trainer: str, endings: str) -> str:
    """Return a trainer's name without some of its endings."""
    return "_".join(part for part in trainer.split("_") if not re.fullmatch(endings, part))
