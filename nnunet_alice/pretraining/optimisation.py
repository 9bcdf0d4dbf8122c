"""Optimisers and schedules that the pretraining methods share (DINO's habits, which Alice took over)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnunet_alice.methods.schedules import cosine, warmup_cosine


@dataclass(frozen=True)
class Optimisation:
    """Optimiser, its schedules, and the clipping of gradients.

    Attributes:
        learning_rate: peak.
        final_learning_rate: at the end of the cosine.
        warmup_share: share of the run over which the rate rises (the paper's 50 of 1000 epochs); 0 starts at the peak.
        warmup_steps: rise over this many steps instead, at most a tenth of the run.
        weight_decay_range: at the start and at the end, by a cosine.
        max_gradient_norm: every parameter's gradient is clipped to this norm; None does not clip.
        sgd_momentum: momentum of SGD; None takes AdamW, which does not decay biases and norms.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup_share: float = 0.05
    warmup_steps: int | None = None
    weight_decay_range: tuple[float, float] = (0.04, 0.4)
    max_gradient_norm: float | None = 3.0
    sgd_momentum: float | None = None

    def learning_rate_at(self, step: int, total: int) -> float:
        """Return the learning rate of a step of ``total``: linear warm-up, then a cosine."""
        if self.warmup_steps is not None:
            warmup = max(1, min(self.warmup_steps, total // 10))
        else:
            warmup = max(1, round(self.warmup_share * total)) if self.warmup_share > 0 else 0
        return warmup_cosine(step, total, warmup, self.learning_rate, end=self.final_learning_rate)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of all parameters that require a gradient; rates are set before every step."""
        if self.sgd_momentum is None:
            return torch.optim.AdamW(decay_groups(module), lr=self.learning_rate)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups = [{"params": trained, "decays": True}]
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.sgd_momentum)

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        """Give the optimiser the learning rate and weight decay of a step of ``total``."""
        learning_rate = self.learning_rate_at(step, total)
        weight_decay = cosine(step, total, *self.weight_decay_range)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
            if group["decays"]:
                group["weight_decay"] = weight_decay


def decay_groups(module: nn.Module) -> list[dict]:
    """Return parameter groups for AdamW: weights with decay, biases and norms (one dimension) without.

    Only parameters that require a gradient are taken, each once, in the order of their names.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "decays": True},
        {"params": [p for p in trained if p.ndim <= 1], "decays": False, "weight_decay": 0.0},
    ]


def clip_each_gradient(gradients: Iterable[Tensor], max_norm: float) -> None:
    """Scale every gradient that is longer than ``max_norm`` down to it, each on its own, in place."""
    gradients = list(gradients)
    if not gradients:
        return
    norms = torch._foreach_norm(gradients)
    factors = [torch.clamp(max_norm / (norm + 1e-6), max=1.0) for norm in norms]
    torch._foreach_mul_(gradients, factors)
