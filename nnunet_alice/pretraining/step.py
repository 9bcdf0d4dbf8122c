"""One optimiser step of a method: rates, loss, gradients, update; a step that is not finite is skipped."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Literal

import torch
from torch import Tensor

from nnunet_alice.pretraining.method import BatchT, Method, Progress
from nnunet_alice.pretraining.optimisation import Optimisation, clip_each_gradient
from nnunet_alice.training.nonfinite import BufferCopies, all_finite, finite_on_all_ranks


@dataclass(frozen=True)
class StepOutcome:
    """What became of a step.

    Attributes:
        metrics: of the method.
        skipped: what was not finite, so that nothing was changed; None after an ordinary step.
        cases: cases of this rank's batch, if they may be the reason.
    """

    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    skipped: Literal["loss", "gradients"] | None = None
    cases: tuple[str, ...] = ()


class TrainingStep(Generic[BatchT]):
    """Takes optimiser steps; all ranks skip the same ones.

    Args:
        method: with its model built.
        optimizer: from ``optimisation``.
        optimisation: schedules and clipping.
        scaler: of the loss in half precision; None without.
        autocast: makes the context in which the loss is computed.
    """

    def __init__(
        self,
        method: Method[BatchT, Any],
        optimizer: torch.optim.Optimizer,
        optimisation: Optimisation,
        scaler: torch.amp.GradScaler | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self.optimisation = optimisation
        self.scaler = scaler
        self.autocast = autocast

    def __call__(self, batch: BatchT, progress: Progress) -> StepOutcome:
        """Take one step, or skip it where the loss of any rank or a gradient is not finite."""
        method = self.method
        copies = BufferCopies(method.step_buffers())
        self.optimisation.set_rates(self.optimizer, progress.step, progress.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            result = method.compute(batch, progress, training=True)
        if not finite_on_all_ranks(result.loss):
            copies.restore()
            return StepOutcome({}, "loss", () if result.loss.isfinite() else tuple(batch.cases))
        if self.scaler is None:
            result.loss.backward()
        else:
            self.scaler.scale(result.loss).backward()
            self.scaler.unscale_(self.optimizer)
        method.after_backward(progress)
        if not self._update():
            copies.restore()
            return StepOutcome(result.metrics, "gradients", tuple(batch.cases))
        method.after_step(progress)
        return StepOutcome(result.metrics)

    def _update(self) -> bool:
        """Clip and step; False where a gradient is not finite (equal on all ranks, which share their gradients)."""
        gradients = [p.grad for p in self.method.trained_module.parameters() if p.grad is not None]
        if self.scaler is None and not all_finite(gradients):
            return False
        if self.optimisation.max_gradient_norm is not None:
            clip_each_gradient(gradients, self.optimisation.max_gradient_norm)
        if self.scaler is None:
            self.optimizer.step()
            return True
        # The scaler looks at the gradients anyway; whether it went on, it tells only by what it calls.
        steps: list[bool] = []
        hook = self.optimizer.register_step_post_hook(lambda *_: steps.append(True))
        self.scaler.step(self.optimizer)
        hook.remove()
        self.scaler.update()
        return bool(steps)
