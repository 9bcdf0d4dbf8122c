"""Training steps on the CPU with channels-last convolutions against torch's default, for small and for stock networks.

    python benchmarks/channels_last.py

Both forms take turns in one run, so that a busy machine slows both. Printed: seconds of forward and backward pass
(median), and their ratio.
"""

import statistics
import sys
import time

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_alice.training.memory_format import channels_last_on_cpu

#: features of the stages, patch, batch
CASES = (
    ((8, 16, 32, 64), (40, 56, 40), 2),
    ((32, 64, 128, 256), (40, 56, 40), 1),
)
REPEATS = 5


def network(features: tuple[int, ...]) -> nn.Module:
    """nnU-Net's plain network with deep supervision."""
    torch.manual_seed(0)
    strides = [1] + [2] * (len(features) - 1)
    norm = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True, "eps": 1e-5}}
    act = {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    args = (1, len(features), list(features), nn.Conv3d, 3, strides, 2, 3, 2)
    return PlainConvUNet(*args, conv_bias=True, **norm, **act, deep_supervision=True)


def seconds(module: nn.Module, images: torch.Tensor) -> float:
    """One forward and backward pass."""
    started = time.perf_counter()
    sum(output.square().mean() for output in module(images)).backward()
    return time.perf_counter() - started


def main() -> int:
    """Print a row for each network."""
    print("| features | patch | batch | default, s | channels last, s | ratio |\n|---|---|---|---|---|---|")
    for features, patch, batch in CASES:
        default, last = network(features), network(features)
        channels_last_on_cpu(last, torch.device("cpu"))
        images = torch.randn(batch, 1, *patch)
        times = [(seconds(default, images), seconds(last, images)) for _ in range(REPEATS + 1)][1:]
        before, after = (statistics.median(column) for column in zip(*times, strict=True))
        row = ("-".join(map(str, features)), "x".join(map(str, patch)), batch)
        print(f"| {row[0]} | {row[1]} | {row[2]} | {before:.2f} | {after:.2f} | {after / before:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
