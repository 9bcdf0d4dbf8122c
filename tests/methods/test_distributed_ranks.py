"""Two real gloo processes give what one process gives on the whole batch."""

import pytest
import torch
from support.gloo_ranks import RANKS, needs_distributed, on_ranks

from nnunet_alice.methods.alice.losses import Centre, sinkhorn_targets
from nnunet_alice.methods.alice.norms import BatchNormBatchStatistics, TokenBatchNorm
from nnunet_alice.methods.distributed import max_over_ranks, mean_over_ranks, world_size

# Unequal on purpose: nnU-Net splits a batch that does not divide.
ROWS = (3, 2)

pytestmark = [needs_distributed, pytest.mark.slow]


def whole_batch():
    """Inputs and fixed output weights of all ranks, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = sum(ROWS)
    return {
        "flat": (draw(rows, 4) * 3 + 1, draw(rows, 4)),
        "tokens": (draw(rows, 3, 4) * 3 + 1, draw(rows, 3, 4)),
        "mean": (draw(RANKS, 4), draw(RANKS, 4)),
        "logits": draw(rows, 6),
    }


def run(part):
    """Everything that is compared; ``part`` takes the rows of a rank, or all of them."""
    batch = whole_batch()
    results = {}
    for name, norm in (("flat", BatchNormBatchStatistics()), ("tokens", TokenBatchNorm())):
        x, weight = (part(tensor) for tensor in batch[name])
        x = x.clone().requires_grad_()
        y = norm(x)
        (y * weight).sum().backward()
        results[name], results[f"{name} gradient"] = y.detach(), x.grad
    centre = Centre(6)
    for _ in range(2):
        centre.update(part(batch["logits"]))
    results["centre"] = centre.value
    results["sinkhorn"] = sinkhorn_targets(part(batch["logits"]), 0.1)
    return results


def results_of(rank):
    assert world_size() == RANKS
    results = run(lambda tensor: tensor.split(ROWS)[rank])
    values, weights = whole_batch()["mean"]
    x = values[rank].clone().requires_grad_()
    mean = mean_over_ranks(x)
    (mean * weights[rank]).sum().backward()
    # A view that is not contiguous, too.
    transposed = mean_over_ranks(values.reshape(2, 4).T)
    results |= {"mean": mean.detach(), "mean gradient": x.grad, "transposed": transposed}
    return results | {"max": max_over_ranks(values[rank]), "untouched": values[rank]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(results_of, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def single():
    return run(lambda tensor: tensor)


@pytest.mark.parametrize("name", ["flat", "flat gradient", "tokens", "tokens gradient", "sinkhorn"])
def test_two_ranks_give_the_rows_of_the_single_process(ranks, single, name):
    together = torch.cat([results[name] for results in ranks])
    torch.testing.assert_close(together, single[name])
    assert together.abs().max() > 0.01


def test_centre_is_that_of_all_rows_on_every_rank(ranks, single):
    for results in ranks:
        torch.testing.assert_close(results["centre"], single["centre"])


def test_mean_and_maximum_over_ranks(ranks):
    values, weights = whole_batch()["mean"]
    for rank, results in enumerate(ranks):
        torch.testing.assert_close(results["mean"], values.mean(dim=0))
        # d(sum of both losses) / d(this rank's input)
        torch.testing.assert_close(results["mean gradient"], weights.mean(dim=0))
        torch.testing.assert_close(results["transposed"], values.T)
        torch.testing.assert_close(results["max"], values.amax(dim=0))
        assert torch.equal(results["untouched"], values[rank])


def test_a_single_process_is_left_alone():
    x = torch.randn(3, requires_grad=True)
    assert world_size() == 1
    assert mean_over_ranks(x) is x
    assert torch.equal(max_over_ranks(x), x) and not max_over_ranks(x).requires_grad
