"""What every batch of views is: a frozen dataclass whose tensors move to a device together."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """Views and the cases that they come from; methods add what else they need.

    Attributes:
        views: (N, C, *patch) float32.
        cases: names of the cases.
    """

    views: Tensor
    cases: list[str]

    def to(self: BatchT, device: torch.device | str) -> BatchT:
        """Return the batch with its tensors on a device; copies from pinned memory do not block."""
        tensors = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in tensors.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)
