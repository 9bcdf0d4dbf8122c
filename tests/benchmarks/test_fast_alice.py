"""Alice as an arm of the search: pairs show one anatomy in two people, and a seed says what is learned."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))  # last, so that the installed package is taken

from benchmarks.fast.alice import matched_places, pretrain_alice
from benchmarks.fast.search import ARMS
from benchmarks.fast.sets import Case
from benchmarks.fast.training import Length
from nnunet_alice.anatomy.deformation import Deformation
from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.pretraining.alice import AlicePretrainingSettings

SPACING = (6.0, 6.0, 6.0)
SHIFT_VOX = np.array([2.0, -1.0, 3.0])


def person(name: str, affine_shift_vox: np.ndarray, displacement_vox: np.ndarray, seed: int) -> Case:
    """A body in air whose points lie, by its affine map and its displacement, elsewhere in the atlas."""
    image = np.full((24, 24, 24), -2.0, np.float32)
    image[4:20, 4:20, 4:20] = np.random.default_rng(seed).normal(1, 0.3, (16, 16, 16))
    affine = np.eye(4)
    affine[:3, 3] = affine_shift_vox * SPACING
    moved = np.broadcast_to((displacement_vox * SPACING)[:, None, None, None], (3, 2, 2, 2)).astype(np.float16)
    label = torch.zeros(1, 1, 24, 24, 24)
    geometry = compute_geometry(name, image[None], SPACING)
    deformation = Deformation(moved, (0.0, 0.0, 0.0), (70.0, 70.0, 70.0))
    return Case(name, torch.from_numpy(image)[None, None], label, affine, deformation, geometry)


@pytest.fixture
def people() -> list[Case]:
    return [person("one", np.zeros(3), np.zeros(3), 0), person("other", SHIFT_VOX, np.array([1.0, 0.0, 0.0]), 1)]


def test_views_of_two_people_show_the_same_place_of_the_atlas(people):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        (first, here), (second, there) = matched_places(people, rng)
        seen.add(first.name)
        assert {first.name, second.name} == {"one", "other"}
        moved = SHIFT_VOX + [1, 0, 0]
        expected = here - moved if first.name == "one" else here + moved
        assert np.allclose(there, expected, atol=1e-6)
        assert second.geometry.in_body(there[None])[0]
    assert seen == {"one", "other"}


@pytest.mark.parametrize("arm", ["alice", "alice_regionsOnly"])
def test_the_seed_says_what_is_learned(people, arm):
    settings, length = ARMS[arm], Length(3, size=(16, 16, 16))
    assert isinstance(settings, AlicePretrainingSettings)
    runs = [pretrain_alice(people, people[0].geometry, settings, length, seed) for seed in (0, 0, 1)]
    weights, again, different = (run[0] for run in runs)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert any(not torch.equal(value, different[name]) for name, value in weights.items())
    assert np.isfinite(runs[0][1]["loss"]) and runs[0][1]["loss_regions"] > 0
    assert ("spread" in runs[0][1]) == (arm == "alice")
