"""Pretrain any of nnU-Net's U-Nets with Alice, without nnU-Net's trainer: arrays in, a trained network out.

    python examples/alice_on_any_unet.py --steps 20

The volumes are phantoms, and points are matched by their share of the volume. Put your own arrays and your own matcher
(:class:`nnunet_alice.matching.interface.Matcher`) in their place.
"""

import argparse

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

from nnunet_alice import AliceMethod, AlicePretrainingSettings, Optimisation, RunContext, pretrain
from nnunet_alice.matching.interface import Matches
from nnunet_alice.phantoms import make_subject, render

SPACING_MM = 12.0


class Volumes:
    """Volumes by name, (C, z, y, x) float32 each, normalised; and where the same anatomy is in two of them."""

    name, threshold, why = "share of the volume", 0.0, ""

    def __init__(self, images: dict[str, np.ndarray]) -> None:
        self.images = images
        self.cases = tuple(sorted(images))

    def image(self, case: str) -> np.ndarray:
        return self.images[case]

    def shape(self, case: str) -> tuple[int, ...]:
        return self.images[case].shape[1:]

    def open(self, case: str) -> None:
        """Nothing to open: all lies in memory."""

    def body_points(self, case: str, count: int, rng: np.random.Generator) -> np.ndarray:
        inside = np.argwhere(self.images[case][0] > -0.5)  # voxels that are not air
        return inside[rng.integers(len(inside), size=count)].astype(float)

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        points = points_vox / np.array(self.shape(case_a)) * self.shape(case_b)
        return Matches(points, np.ones(len(points)))


def phantom(seed: int) -> np.ndarray:
    """Return a normalised torso."""
    image = render(make_subject(seed), SPACING_MM).image[None]
    return ((image + 200) / 400).clip(-2, 2).astype(np.float32)


def main(steps: int) -> list[float]:
    """Train and return the losses."""
    volumes = Volumes({f"phantom{seed}": phantom(seed) for seed in range(4)})
    network = PlainConvUNet(
        *(1, 4, (8, 16, 32, 64), torch.nn.Conv3d, 3, (1, 2, 2, 2), 1, 1, 1),  # as many outputs as inputs
        **{"conv_bias": True, "norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}},
        **{"nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}},
    )
    context = RunContext(volumes, patch_size=(16, 16, 16), spacing=(SPACING_MM,) * 3, batch_size=4)
    settings = AlicePretrainingSettings(prototypes=64, hidden_dim=64, regions=False)  # regions need an atlas
    method = AliceMethod(settings, context, matcher=volumes)
    losses = []
    length = {"steps": steps, "steps_per_epoch": 10, "optimisation": Optimisation(learning_rate=3e-3)}
    for step in pretrain(method, network, cases=volumes.cases, **length):
        losses.append(step["loss"])
        print(f"step {len(losses):3d}  loss {losses[-1]:.3f}")
    return losses  # network.state_dict() holds the trained weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    torch.manual_seed(0)
    main(parser.parse_args().steps)
