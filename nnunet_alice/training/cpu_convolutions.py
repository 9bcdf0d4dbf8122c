"""What makes the 3D convolutions of small networks fast without a GPU; values, names and shapes stay as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: Features up to which channels-last pays; wider convolutions are as fast in torch's default order, or faster.
MOST_FEATURES = 16
#: Channels times the first two axes of a single image up to which torch takes its own kernel instead of oneDNN's.
SMALL_IMAGE = 20480


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


@contextmanager
def small_images_twice_on_cpu(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Show ``network`` a single small image twice in a batch, and return the output of one.

    That takes half the time: for a batch of one, torch chooses a kernel that is several times slower than oneDNN's
    (``ConvParams::use_mkldnn``). For prediction by sliding window; nothing happens on other devices, for networks whose
    narrowest convolution is wide enough, and for batches of several.
    """
    widths = [
        part.out_channels for part in network.modules() if isinstance(part, nn.Conv3d) and max(part.kernel_size) > 1
    ]
    if device.type != "cpu" or not widths:
        yield
        return
    doubled = []

    def before(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (images,) = inputs
        doubled.append(len(images) == 1 and min(widths) * images.shape[2] * images.shape[3] <= SMALL_IMAGE)
        return (torch.cat([images, images]),) if doubled[-1] else inputs

    def after(_: nn.Module, __: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output[:1] if doubled.pop() else output

    hooks = (network.register_forward_pre_hook(before), network.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
