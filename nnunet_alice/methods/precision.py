"""The precision that what autocast leaves in half precision is summed and compared in."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
