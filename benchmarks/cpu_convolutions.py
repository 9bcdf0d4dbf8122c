"""What ``training.cpu`` saves, for small and for stock networks, against torch's default.

    python benchmarks/cpu_convolutions.py

Both forms take turns in one run, so that a busy machine slows both. Printed: seconds of forward and backward pass
(channels-last convolutions), seconds of predicting one patch (the patch twice in a batch), medians, and their ratios.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_alice.training.cpu import channels_last_on_cpu

#: features of the stages, patch, batch
CASES = (
    ((8, 16, 32, 64), (40, 56, 40), 2),
    ((32, 64, 128, 256), (40, 56, 40), 1),
)
REPEATS = 5
CPU = torch.device("cpu")


def network(features: tuple[int, ...]) -> nn.Module:
    """Return nnU-Net's plain network with deep supervision."""
    torch.manual_seed(0)
    strides = [1] + [2] * (len(features) - 1)
    norm = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True, "eps": 1e-5}}
    act = {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    args = (1, len(features), list(features), nn.Conv3d, 3, strides, 2, 3, 2)
    return PlainConvUNet(*args, conv_bias=True, **norm, **act, deep_supervision=True)


def training_seconds(module: nn.Module, images: torch.Tensor) -> float:
    """Do one forward and backward pass."""
    started = time.perf_counter()
    sum(output.square().mean() for output in module(images)).backward()
    return time.perf_counter() - started


def prediction_seconds(module: nn.Module, images: torch.Tensor) -> float:
    """Do one forward pass without gradients."""
    started = time.perf_counter()
    with torch.inference_mode():
        module(images)
    return time.perf_counter() - started


def both(default: Callable[[], float], ours: Callable[[], float]) -> str:
    """Return medians of both in turns, after a first turn that does not count, and their ratio: columns of a table."""
    times = [(default(), ours()) for _ in range(REPEATS + 1)][1:]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    return f"{before:.2f} | {after:.2f} | {after / before:.2f}"


def twice(module: nn.Module, image: torch.Tensor) -> float:
    """Predict one patch, twice in the batch: for a single one torch takes a kernel slower than oneDNN's."""
    return prediction_seconds(module, torch.cat([image, image]))


def main() -> int:
    """Print a row for each network."""
    print("| features | patch | batch | step, s | channels last | ratio | one patch, s | twice | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for features, patch, batch in CASES:
        default, ours = network(features), network(features)
        channels_last_on_cpu(ours, CPU)
        images = torch.randn(batch, 1, *patch)
        step = both(partial(training_seconds, default, images), partial(training_seconds, ours, images))
        one = both(partial(prediction_seconds, ours, images[:1]), partial(twice, ours, images[:1]))
        print(
            f"| {'-'.join(map(str, features))} | {'x'.join(map(str, patch))} | {batch} | {step} | {one} |", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
