"""DrasCLR in the search: the same for the same seed, the encoder alone, and made plain where it was conditional."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))  # last, so that the installed package is taken

from benchmarks.fast.contrast import Contrast, pretrain_encoder
from benchmarks.fast.sets import Case
from benchmarks.fast.training import Length, network
from nnunet_alice.anatomy.deformation import Deformation
from nnunet_alice.anatomy.geometry import compute_geometry


@pytest.fixture(scope="module")
def cases():
    """Four bodies of noise in the same place."""
    made = []
    for number in range(4):
        image = np.zeros((1, 40, 40, 40), np.float32)
        image[:, 2:-2, 2:-2, 2:-2] = 2 + np.random.default_rng(number).random((36, 36, 36))
        geometry = compute_geometry(f"case{number}", image, (6.0,) * 3)
        none = Deformation(np.zeros((3, 1, 1, 1), np.float16), (0.0,) * 3, (6.0,) * 3)
        tensor = torch.from_numpy(image)[None]
        made.append(Case(f"case{number}", tensor, torch.zeros_like(tensor), np.eye(4), none, geometry))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("contrast", [Contrast(), Contrast(conditional=False), Contrast(neighbours=0)])
def test_a_plain_encoder_is_trained_and_fits_the_network(cases, contrast):
    length = Length(3, size=(24, 24, 24), stages=3)
    weights, metrics = pretrain_encoder(cases, cases[0].geometry, contrast, length, 0)
    torch.manual_seed(2000)
    fresh = network(1, 3)
    shapes = {name: value.shape for name, value in fresh.state_dict().items() if "encoder." in name}
    assert {name: value.shape for name, value in weights.items()} == shapes
    assert all(torch.equal(weights[name], weights["decoder." + name]) for name in weights if name.startswith("encoder"))
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert not torch.equal(weights[first], fresh.state_dict()[first])
    again, _ = pretrain_encoder(cases, cases[0].geometry, contrast, length, 0)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert metrics["local"] > 0 and (metrics["regional"] > 0) == (contrast.neighbours > 0)
