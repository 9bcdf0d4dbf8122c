"""Metrics of one epoch: means over steps and ranks as they come in, and the row that is kept of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

import torch

from nnunet_alice.training.history import mean_metrics
from nnunet_alice.training.ranks import metrics_over_ranks, number_of_each_rank


@dataclass
class EpochMetrics:
    """Metrics of one epoch.

    Attributes:
        training: means over steps and ranks, and the number of skipped steps.
        views: that all ranks trained on.
        trained: when training ended, in seconds.
        validation: means of the losses, and the method's own metrics.
    """

    training: dict[str, float] = field(default_factory=dict)
    views: int = 0
    trained: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_training(
        cls, outputs: Sequence[Mapping[str, Any]], device: torch.device, more: Mapping[str, float]
    ) -> "EpochMetrics":
        """Take the means of what the steps gave; all ranks have to call it.

        Args:
            outputs: of each step ``metrics``, ``views`` (number) and ``skipped``.
            device: of the run.
            more: further metrics, equal on all ranks.
        """
        metrics = metrics_over_ranks(mean_metrics(output["metrics"] for output in outputs), device)
        metrics["skipped_steps"] = sum(output["skipped"] for output in outputs)
        views = sum(number_of_each_rank(sum(output["views"] for output in outputs), device))
        return cls({**metrics, **more}, views, time())

    def add_validation(
        self, metrics: Sequence[Mapping[str, float]], own: Mapping[str, float], device: torch.device
    ) -> None:
        """Add the means of the validation's losses, and the method's own metrics; all ranks have to call it."""
        losses = {f"val_{k}": value for k, value in mean_metrics(metrics).items() if k.startswith("loss")}
        self.validation = metrics_over_ranks({**losses, **own}, device)

    def row(self, epoch: int, learning_rate: float, started: float) -> dict[str, float]:
        """Return the row of the history.

        Args:
            epoch: its number.
            learning_rate: of its last step.
            started: when it began, in seconds.
        """
        seconds = {"seconds": time() - started, "views_per_second": self.views / max(self.trained - started, 1e-9)}
        return {"epoch": epoch, **self.training, **self.validation, "lr": learning_rate, **seconds}
