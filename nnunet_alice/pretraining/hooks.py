"""What a pretraining method fills in: the hooks that ``PretrainingTrainer`` (trainers/pretraining.py) calls."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn


class StepResult(Protocol):
    """What a method gives for one batch: a scalar loss, and named scalars for the log that begin with ``loss``."""

    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor]


class PretrainingHooks:
    """Hooks in the order of a run; those without a default have to be written.

    Attributes:
        model: what :meth:`build_model` gave, on the device.
        network: the network of the plans.
        batch_size: of this rank.
        rank_batch_sizes: of all ranks; nnU-Net splits a batch that does not divide into unequal parts.
    """

    model: nn.Module
    network: nn.Module
    batch_size: int
    rank_batch_sizes: tuple[int, ...]

    def build_model(self, network: nn.Module) -> nn.Module:
        """Hook: the method's module around the network of the plans."""
        raise NotImplementedError

    def trained_module(self) -> nn.Module:
        """Hook: the part of the model that gets gradients and that DDP wraps."""
        return self.model.student

    def make_batches(self, cases: list[str], training: bool):
        """Hook: ``make_batch`` for :class:`NumberedBatches` over these cases."""
        raise NotImplementedError

    def compute(self, batch: dict, training: bool) -> StepResult:
        """Hook: loss and named parts of one batch that is on the trainer's device."""
        raise NotImplementedError

    def step_buffers(self) -> Iterable[torch.Tensor]:
        """Hook: buffers that :meth:`compute` moves and that get their values back where a step is left out.

        They are copied before every step: a method with large ones leaves them out, and keeps NaN from them itself.
        """
        return self.model.buffers()

    def after_backward(self) -> None:
        """Hook: before the optimiser's step, e.g. to drop gradients."""

    def after_step(self) -> None:
        """Hook: after the optimiser's step, e.g. to move the teacher."""

    def before_training(self) -> None:
        """Hook: once before the first epoch of a run that is not continued."""

    def validation_outputs(self, batch: dict, result: StepResult) -> dict:
        """Hook: what :meth:`validation_metrics` needs of one validation batch."""
        return {}

    def validation_metrics(self, outputs: list[dict]) -> dict[str, float]:
        """Hook: metrics of a whole validation epoch."""
        return {}

    def epoch_warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Hook: what looks wrong in an epoch's metrics, one sentence each."""
        return []

    def draw_pictures(self) -> None:
        """Hook: pictures of what the network sees; called on rank 0 every ``pictures_every`` epochs."""

    def cases_of(self, batch: dict) -> list[str]:
        """Hook: names of the cases that a batch shows, for messages."""
        return sorted({case for pair in batch.get("pairs", ()) for case in (pair.case_a, pair.case_b)})

    def network_weights(self) -> dict[str, torch.Tensor]:
        """Hook: weights of the plans' network as stock nnU-Net loads them."""
        return self.network.state_dict()

    def checkpoint_extras(self) -> dict:
        """Hook: further entries of the checkpoint, plain types and tensors."""
        return {}

    def trained_parts(self) -> dict[str, bool]:
        """Hook: which parts of the network were trained: ``encoder``, ``decoder``."""
        raise NotImplementedError
