"""Training without a GPU: how many threads it takes, and what makes the convolutions of small networks fast."""

import os

import torch
from torch import nn

#: Features up to which channels-last pays; wider convolutions are as fast in torch's default order, or faster.
MAX_FEATURES = 16


def channels_last_on_cpu(module: nn.Module, device: torch.device) -> None:
    """Store the weights of narrow 3D convolutions channels-last, in place; nothing happens on other devices.

    oneDNN's backward pass of a convolution of 8 to 8 features is four times as fast that way; ``python
    benchmarks/cpu_convolutions.py`` measures whole networks. Checkpoints load anywhere. Parameters keep their identity,
    so an optimiser may exist already.
    """
    if device.type != "cpu":
        return
    for part in module.modules():
        if isinstance(part, nn.Conv3d) and max(part.in_channels, part.out_channels) <= MAX_FEATURES:
            part.to(memory_format=torch.channels_last_3d)


def keep_thread_limit(device: torch.device) -> None:
    """Compute on the CPU with no more threads than ``OMP_NUM_THREADS`` says, where it says anything.

    ``nnUNetv2_train -device cpu`` takes a thread for every core, whatever that variable says. Several runs on one
    machine then wait for each other's threads, several times as long as their share of the cores explains.

    Args:
        device: of the training; nothing happens on others than the CPU.
    """
    # OpenMP allows a list, a number for each level of nested parallelism
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if device.type == "cpu" and limit.isdecimal() and 0 < int(limit) < torch.get_num_threads():
        torch.set_num_threads(int(limit))
