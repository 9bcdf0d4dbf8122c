"""What does location conditioning cost? Forward and backward of an nnU-Net encoder, plain and conditional.

Four encoders of the same widths take turns in every round, so that a busy machine slows all of them alike:

- plain: the encoder of a stock PlainConvUNet;
- conditional, all samples of the batch at one location (the batches that DrasCLR trains on);
- conditional, the batch spread evenly over 4 locations (a landmark and its neighbours);
- the naive way, for comparison: a loop over the samples that mixes a kernel for each, in every layer.

Example:
    python benchmarks/conditional_convolution.py --patch 32 --batch 8 --repeats 7
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from torch import Tensor, nn

from nnunet_alice.methods.drasclr.conditional import ConditionalConv3d, ConditionalEncoder, LocationGroups
from nnunet_alice.methods.drasclr.conversion import to_conditional

STOCK_FEATURES = (32, 64, 128, 256, 320, 320)


class LoopOverSamples(ConditionalConv3d):
    """The same layer, written down naively: mix and convolve one sample after the other."""

    def forward(self, x: Tensor, locations: LocationGroups | None = None) -> Tensor:
        """Convolve (B, in, z, y, x) sample by sample."""
        locations = locations or (self.context.locations if self.context is not None else None)
        assert locations is not None
        points = locations.points.repeat_interleave(torch.tensor(locations.counts, device=x.device), dim=0)
        outputs = []
        for sample, point in zip(x.split(1), points.split(1), strict=True):
            outputs.append(self._convolve(sample, self.mix(point)[0], self.bias, self.groups))
        return torch.cat(outputs)


def stock_encoder(num_stages: int) -> nn.Module:
    """Return the encoder of a stock 3d_fullres configuration with ``num_stages`` stages, two convolutions each."""
    return PlainConvEncoder(
        input_channels=1,
        n_stages=num_stages,
        features_per_stage=STOCK_FEATURES[:num_stages],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (num_stages - 1),
        n_conv_per_stage=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        return_skips=True,
    )


def looped_copy(encoder: ConditionalEncoder) -> ConditionalEncoder:
    """Return the same weights, every layer naive."""
    looped = copy.deepcopy(encoder)
    for layer in looped.modules():
        if isinstance(layer, ConditionalConv3d):
            layer.__class__ = LoopOverSamples
    return looped


def spread_over(count: int, batch: int, device: torch.device) -> LocationGroups:
    """Return ``batch`` samples at ``count`` locations, evenly."""
    generator = torch.Generator().manual_seed(count)
    counts = tuple(batch // count + (group < batch % count) for group in range(count))
    return LocationGroups((torch.rand(count, 3, generator=generator) * 2 - 1).to(device), counts)


def timed(step: Callable[[], list[Tensor]], module: nn.Module, device: torch.device, half: bool) -> float:
    """Return seconds of one forward and backward pass."""
    module.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.float16, enabled=half):
        levels = step()
    levels[-1].float().square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Time the encoders and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=32, help="edge of the patches in voxels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--stages", type=int, default=5, choices=range(2, 7))
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="under float16 autocast, as nnU-Net trains on GPUs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device = torch.device(arguments.device)

    plain = stock_encoder(arguments.stages).to(device)
    conditional = to_conditional(plain, arguments.experts, location_gain=1.0)
    looped = looped_copy(conditional)
    x = torch.randn(arguments.batch, 1, *[arguments.patch] * 3, device=device)
    one, four = (spread_over(count, arguments.batch, device) for count in (1, min(4, arguments.batch)))
    each = spread_over(arguments.batch, arguments.batch, device)
    with torch.no_grad():
        torch.testing.assert_close(conditional(x, four)[-1], looped(x, four)[-1], rtol=1e-2, atol=1e-2)

    contenders: dict[str, tuple[Callable[[], list[Tensor]], nn.Module]] = {
        "plain": (lambda: plain(x), plain),
        "conditional, 1 location": (lambda: conditional(x, one), conditional),
        "conditional, 4 locations": (lambda: conditional(x, four), conditional),
        f"conditional, {arguments.batch} locations": (lambda: conditional(x, each), conditional),
        "loop over samples": (lambda: looped(x, one), looped),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(arguments.repeats + 1):
        for name, (step, module) in contenders.items():
            elapsed = timed(step, module, device, arguments.half)
            if repeat > 0:  # the first round warms up
                seconds[name].append(elapsed)
    print(f"{arguments} torch {torch.__version__}")
    print(f"{'forward + backward':<28}{'median s':>10}{'min s':>10}{'ratio of minima':>18}{'median ratio':>14}")
    for name, times in seconds.items():
        paired = statistics.median(a / b for a, b in zip(times, seconds["plain"], strict=True))
        least = min(times) / min(seconds["plain"])
        print(f"{name:<28}{statistics.median(times):>10.3f}{min(times):>10.3f}{least:>18.2f}{paired:>14.2f}")


if __name__ == "__main__":
    main()
