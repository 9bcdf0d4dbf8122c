"""What a pretraining method is: views, a module around the network, a loss, and what to say about a run.

A trainer drives it (``trainers/pretraining.py``), and so can twenty lines of torch (``examples/alice_on_any_unet.py``).
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.matching.interface import Matcher
from nnunet_alice.training.settings import flat
from nnunet_alice.views.batch import Batch

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=Batch)
SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: number of the current epoch, from 0.
        step: number of the current optimiser step, from 0; of a run that was extended, in its part.
        total_steps: optimiser steps of the whole run, or of its part.
    """

    epoch: int
    step: int
    total_steps: int


@dataclass(frozen=True)
class StepResult:
    """What a method makes of one batch.

    Attributes:
        loss: scalar to minimise.
        metrics: named scalars, detached; those that begin with ``loss`` are also reported for validation.
        outputs: what :meth:`Method.validation_metrics` needs of a validation batch; small, on the CPU.
        details: what :meth:`Method.draw` needs of a validation batch beside the batch.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float]
    outputs: Mapping[str, Any] = field(default_factory=dict)
    details: Any = None


@dataclass(frozen=True)
class RunContext:
    """What a method is told about the run that it is part of.

    Attributes:
        dataset: the preprocessed cases. Methods that are given a matcher only use ``image`` and ``shape`` of it.
        patch_size: (3,) voxels, (z, y, x).
        spacing: (3,) voxel size in mm, (z, y, x).
        batch_size: planned size of this rank's batch.
        seed: of the run.
        device: where the network is.
        log: takes a line for the log.
    """

    dataset: PreprocessedDataset
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    batch_size: int
    seed: int = 12345
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Callable[[str], None] = logger.info


class Method(ABC, Generic[BatchT, SettingsT]):
    """One way to learn from unlabelled volumes. A method has to write the four abstract members.

    They are called in the order of this class: ``build``, ``prepare``, ``batches``, ``before_training``; every step
    ``compute``, ``after_backward``, ``after_step``; every epoch ``validation_metrics``, ``warnings``, ``draw``;
    ``after_training`` at the end. Settings are frozen, what changes lies in the module and in the arguments.

    Args:
        settings: of the method, a frozen dataclass.
        context: of the run.

    Attributes:
        name: in logs and checkpoints.
        batch_size: of this rank; :meth:`make_model` may change it.
        matcher: pairs views, if anything does.
        network: the network that is pretrained, once it was built.
        model: the module around it, once it was built.
        parallel: :meth:`trained_module` as wrapped for several GPUs; None for one.
    """

    name: ClassVar[str]
    matcher: Matcher | None = None
    network: nn.Module
    model: nn.Module
    parallel: nn.Module | None = None

    def __init__(self, settings: SettingsT, context: RunContext) -> None:
        self.settings = settings
        self.context = context
        self.batch_size = context.batch_size

    # ---------------------------------------------------------------------------------------------- the network

    def build(self, network: nn.Module) -> nn.Module:
        """Build the module around a network, on the run's device, and return it.

        Args:
            network: one of nnU-Net's U-Nets with as many output channels as input channels.
        """
        self.network = network
        self.model = self.make_model(network).to(self.context.device)
        return self.model

    @abstractmethod
    def make_model(self, network: nn.Module) -> nn.Module:
        """Return the method's module around a network."""

    @property
    def trained_module(self) -> nn.Module:
        """The part of the model that gets gradients."""
        return self.model

    @property
    def modules_to_compile(self) -> Sequence[nn.Module]:
        """Modules that are compiled where nnU-Net compiles."""
        return [self.trained_module]

    def module_for(self, training: bool) -> nn.Module:
        """Return the trained module as :meth:`compute` has to call it: on several GPUs the wrapped one in training."""
        return self.parallel if training and self.parallel is not None else self.trained_module

    # ------------------------------------------------------------------------------------------------ the views

    def prepare(
        self, training: list[str], validation: list[str], matching: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Open what the views need, make it where it is missing, and return the cases to train and to validate on.

        Args:
            training: training cases of the fold.
            validation: its validation cases.
            matching: name of the matcher that a continued run began with.
        """
        return training, validation

    @abstractmethod
    def batches(self, cases: list[str], training: bool) -> Callable[[int, np.random.Generator], BatchT]:
        """Return a function (number of the batch, source of randomness) -> batch; workers may copy it."""

    def validation_batches(self, rank_batch_sizes: Sequence[int]) -> int:
        """Return the number of batches of a validation epoch, the same on every rank.

        Args:
            rank_batch_sizes: batch size of every rank.
        """
        return 50

    # --------------------------------------------------------------------------------------------- the training

    def before_training(self) -> None:
        """Prepare a run that is not continued; the network may have got ``-pretrained_weights``."""

    @abstractmethod
    def compute(self, batch: BatchT, progress: Progress, training: bool) -> StepResult:
        """Return the loss of a batch that is on the device, under autocast on CUDA.

        Args:
            batch: one of :meth:`batches`.
            progress: of the run, for schedules.
            training: False in validation: nothing may change then, and ``outputs`` and ``details`` are wanted.
        """

    def step_buffers(self) -> Iterable[Tensor]:
        """Return the buffers that :meth:`compute` moves and that get their values back when a step is skipped.

        They are copied before every step: a method with large ones leaves them out, and keeps NaN from them itself.
        """
        return self.model.buffers()

    def after_backward(self, progress: Progress) -> None:
        """Change gradients before the optimiser's step, e.g. drop some."""

    def after_step(self, progress: Progress) -> None:
        """Follow the optimiser's step, e.g. move a teacher."""

    def after_training(self) -> None:
        """Measure at the end of the run; called on the first rank, before the last checkpoint is written."""

    # ----------------------------------------------------------------------------------------------- the report

    def validation_metrics(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return metrics of a whole validation epoch, the same names on every rank; NaN if there is nothing to measure.

        Args:
            outputs: ``StepResult.outputs`` of its batches.
        """
        return {}

    def warnings(self, metrics: Mapping[str, float], epoch: int) -> list[str]:
        """Return what looks wrong in an epoch's metrics, one sentence without a full stop each."""
        return []

    def draw(self, batch: BatchT, result: StepResult, folder: Path) -> None:
        """Draw what the network sees; ``batch`` is the first of a validation epoch and ``result`` its result."""

    def next_steps(self) -> list[str]:
        """Return what a user can do with the trained network beside fine-tuning it, one sentence each."""
        return []

    # ------------------------------------------------------------------------------------------ the checkpoints

    def recorded_settings(self) -> dict[str, Any]:
        """Return what has to be the same when a run is continued: plain types."""
        return flat(self.settings)

    def network_weights(self) -> dict[str, Tensor]:
        """Return the network's weights as stock nnU-Net loads them."""
        return self.network.state_dict()

    def checkpoint_extras(self) -> dict[str, Any]:
        """Return further entries of the checkpoint: plain types and tensors."""
        return {}

    def trained_parts(self) -> dict[str, bool]:
        """Return which parts of the network are trained: ``encoder``, ``decoder``."""
        return {"encoder": True, "decoder": True}
