"""Small parts of the optimisation that the methods share (DINO's habits, which Alice took over)."""

from collections.abc import Iterable

import torch
from torch import nn


def decay_groups(module: nn.Module) -> list[dict]:
    """Parameter groups for AdamW: weights with decay, biases and norms (one dimension) without.

    Only parameters that require a gradient are taken, each once, in the order of their names.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "decays": True},
        {"params": [p for p in trained if p.ndim <= 1], "decays": False, "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give all groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give the groups that decay one weight decay."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = value


def clip_each_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale every gradient that is longer than ``max_norm`` down to it, each parameter on its own, in place."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    norms = torch._foreach_norm(gradients)
    factors = [torch.clamp(max_norm / (norm + 1e-6), max=1.0) for norm in norms]
    torch._foreach_mul_(gradients, factors)
