"""The search: rates by cases that are neither trained nor tested on, and pretrainings that are done once."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))  # last, so that the installed package is taken

from benchmarks.fast.search import TUNING_CASES, pretrained, tuned_rate
from benchmarks.fast.training import encoder_weights, network, normalised_convolutions, rescale


@pytest.mark.parametrize(("labels", "expected"), [(1, 1), (3, 3), (12, 9)])
def test_a_rate_is_chosen_by_training_cases_that_this_training_does_not_see(labels, expected):
    seen = []

    def dice(chosen, tested, rate, draw):
        seen.append((list(chosen), list(tested), draw))
        return -abs(rate - 0.01)

    training = [f"case{number}" for number in range(12)]
    assert tuned_rate(dice, (0.003, 0.01, 0.03), training, labels, 1)[0] == 0.01
    assert len(seen) == 3 and all(one == seen[0] for one in seen)
    chosen, tested, _ = seen[0]
    assert len(chosen) == expected and len(tested) == TUNING_CASES and not set(chosen) & set(tested)


def test_a_single_rate_costs_nothing():
    assert tuned_rate(lambda *_: pytest.fail("measured"), (0.01,), ["case"], 1, 0) == (0.01, {})


def test_a_pretraining_is_done_once_and_its_weights_are_taken_again(tmp_path):
    runs = []

    def train():
        runs.append(1)
        return {"weight": torch.arange(3.0)}, {"reconstruction": 0.5}

    path = tmp_path / "kept" / "weights.pt"
    made, again = (pretrained(path, train) for _ in range(2))
    assert len(runs) == 1 and again[1:] == made[1:] and torch.equal(again[0]["weight"], made[0]["weight"])
    pretrained(None, train)
    assert len(runs) == 2


def test_the_encoder_alone_is_carried_on():
    """Not the decoder; nor is the encoder overwritten by its second name in the decoder."""
    given, taking = (network(outputs) for outputs in (1, 3))
    fresh = {name: value.clone() for name, value in taking.state_dict().items()}
    taking.load_state_dict(taking.state_dict() | encoder_weights(given.state_dict()))
    for name, value in taking.encoder.state_dict().items():
        assert torch.equal(value, given.encoder.state_dict()[name]), name
    for name, value in taking.decoder.state_dict().items():
        assert name.startswith("encoder.") or torch.equal(value, fresh["decoder." + name]), name


@torch.no_grad()
def test_weights_are_scaled_to_a_size_without_changing_what_they_compute():
    """A norm follows, and takes the size out again."""
    net, fresh = network(3).eval(), network(3)
    for conv in normalised_convolutions(net):
        conv.weight *= 10
        conv.bias *= 10
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    before = net(image)
    sizes = [float(conv.weight.norm()) for conv in normalised_convolutions(fresh)]
    rescale(net, sizes)
    assert torch.allclose(net(image), before, atol=1e-3)
    for conv, size in zip(normalised_convolutions(net), sizes, strict=True):
        assert float(conv.weight.norm()) == pytest.approx(size, rel=1e-5)
    assert len(sizes) == 14
