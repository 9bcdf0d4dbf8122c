"""What makes the 3D convolutions of small networks fast without a GPU; values, names and shapes stay as they are."""

import torch
from torch import nn

#: Features up to which channels-last pays; wider convolutions are as fast in torch's default order, or faster.
MOST_FEATURES = 16


def channels_last_on_cpu(module: nn.Module, device: torch.device) -> None:
    """Store the weights of narrow 3D convolutions channels-last, in place; nothing happens on other devices.

    oneDNN's backward pass of a convolution of 8 to 8 features is four times as fast that way; ``python
    benchmarks/cpu_convolutions.py`` measures whole networks. Checkpoints load anywhere. Parameters keep their identity,
    so an optimiser may exist already.
    """
    if device.type != "cpu":
        return
    for part in module.modules():
        if isinstance(part, nn.Conv3d) and max(part.in_channels, part.out_channels) <= MOST_FEATURES:
            part.to(memory_format=torch.channels_last_3d)
