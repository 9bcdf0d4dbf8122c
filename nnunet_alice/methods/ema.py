"""The teacher of a student: an exponential moving average (EMA) of the student's parameters."""

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def frozen_copy(module: ModuleT) -> ModuleT:
    """Return deep copy of ``module`` that gets no gradient: the teacher at step 0.

    Train or eval mode is copied as it is; batch statistics and dropout of the teacher stay the caller's decision.

    Args:
        module: Student, or a part of it.

    Returns:
        Copy with storage of its own and ``requires_grad`` False on every parameter.
    """
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student, in place: ``t <- momentum * t + (1 - momentum) * s``.

    Parameters are averaged in the teacher's dtype. Buffers (running statistics, counters) are copied: they are
    averages or counts already.

    Args:
        teacher: Module that is updated.
        student: Module of the same parameters and buffers. Pass the bare module, not one wrapped by DDP or
            ``torch.compile``, whose names carry a prefix.
        momentum: Share of the old teacher that stays, in [0, 1].

    Raises:
        ValueError: If ``momentum`` is outside [0, 1], or names or shapes of the two modules differ. The teacher is
            untouched then.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}.")
    parameters = _pairs("parameters", teacher.named_parameters(), student.named_parameters())
    buffers = _pairs("buffers", teacher.named_buffers(), student.named_buffers())
    if parameters:
        targets = [target for target, _ in parameters]
        sources = [source.to(target.device, target.dtype) for target, source in parameters]
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)
    for target, source in buffers:
        target.copy_(source)


def momentum_for(steps: int, most: float) -> float:
    """Return the momentum of a run: in short ones its memory is at most a twentieth of the run.

    Args:
        steps: Length of the run.
        most: Momentum of long runs.
    """
    return min(most, max(0.0, 1 - 20 / steps))


def _pairs(
    kind: str, teacher: Iterable[tuple[str, Tensor]], student: Iterable[tuple[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Return tensors of teacher and student with the same name; ValueError unless all names and shapes agree."""
    targets, sources = dict(teacher), dict(student)
    if targets.keys() != sources.keys():
        different = sorted(targets.keys() ^ sources.keys())
        raise ValueError(f"Teacher and student differ in their {kind}: {', '.join(different[:5])}.")
    for name, target in targets.items():
        if target.shape != sources[name].shape:
            shapes = f"{tuple(target.shape)} and {tuple(sources[name].shape)}"
            raise ValueError(f"Teacher and student differ in the shape of {name}: {shapes}.")
    return [(target, sources[name]) for name, target in targets.items()]
