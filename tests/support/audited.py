"""Trainers as the audit runs them: short, silent, on a device of its choice."""

import copy
import math
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

if "gpu_check" not in sys.modules:  # a process of its own, which does not read conftest.py
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_check import ROWS, Row, make_trainer

#: One epoch of so many steps, and so many batches of validation.
STEPS = 3


def rows(*names: str) -> list[Row]:
    """Rows of the table by their names; all without."""
    return [row for row in ROWS if not names or row.name in names]


def short_trainer(row: Row, device: torch.device, steps: int = STEPS, scale: float = 1.0):
    """The trainer of a row with a run of one epoch; ``scale`` is the gradient scaler's first one."""
    trainer = make_trainer(row, device)
    if trainer.grad_scaler is not None:
        trainer.grad_scaler = torch.amp.GradScaler("cuda", init_scale=scale)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, steps
    return trainer


def begin(trainer) -> list[Any]:
    """Start training by hand, without an epoch's end; gives two batches.

    Stock trainers draw weights and batches from the global generators, which are seeded here: two trainers begun like
    this start alike.
    """
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  nnU-Net's loader draws from the global generator
    random.seed(0)
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    if hasattr(trainer, "method"):
        trainer.method.before_training()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return [next(trainer.dataloader_train) for _ in range(2)]


def losses(trainer, batches: Iterable[Any]) -> list[float]:
    """Loss of a training step on each batch; NaN where the loss was not finite."""
    found = []
    for batch in batches:
        output = trainer.train_step(copy.copy(batch))
        values = output.get("metrics", output)
        found.append(float(values["loss"]) if values else math.nan)
    return found
