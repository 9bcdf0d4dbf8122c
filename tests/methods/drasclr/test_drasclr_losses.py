"""Both losses against loops and hand values."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from nnunet_alice.methods.drasclr.losses import drasclr_loss, local_loss, regional_loss


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def looped(query, key, negatives, temperature, ignore=None):
    """InfoNCE in plain Python numbers."""
    losses, hits = [], []
    for i in range(len(query)):
        positive = float(query[i] @ key[i]) / temperature
        others = [
            float(query[i] @ negatives[n]) / temperature
            for n in range(len(negatives))
            if ignore is None or not ignore[i, n]
        ]
        losses.append(-math.log(math.exp(positive) / (math.exp(positive) + sum(math.exp(o) for o in others))))
        if others:
            hits.append(positive > max(others))
    return sum(losses) / len(losses), sum(hits) / len(hits)


@pytest.mark.parametrize("masked", [False, True])
def test_local_loss_is_the_looped_one(masked):
    query, key, negatives = unit(6, 8), normalize(unit(6, 8) + 2 * unit(6, 8, seed=1), dim=1), unit(11, 8, seed=2)
    ignore = torch.rand(6, 11, generator=torch.Generator().manual_seed(3)) < 0.4 if masked else None
    result = local_loss(query, key, negatives, temperature=0.3, ignore=ignore)
    loss, accuracy = looped(query, key, negatives, 0.3, ignore)
    assert float(result.loss) == pytest.approx(loss)
    assert float(result.accuracy) == pytest.approx(accuracy)
    assert 0 < accuracy < 1


@pytest.mark.parametrize("k", [1, 2, 5])
def test_regional_loss_is_the_looped_one(k):
    neighbours, key, negatives = unit(k, 6, 8), unit(6, 8, seed=1), unit(11, 8, seed=2)
    result = regional_loss(neighbours, key, negatives, temperature=0.2)
    summed = [sum(neighbours[j, i] for j in range(k)) for i in range(6)]
    loss, accuracy = looped(torch.stack(summed), key, negatives, 0.2)
    assert float(result.loss) == pytest.approx(loss)
    assert float(result.accuracy) == pytest.approx(accuracy)


def test_hand_value():
    query = torch.tensor([[1.0, 0.0]])
    key, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    assert float(local_loss(query, key, negatives, temperature=0.5).loss) == pytest.approx(
        math.log(1 + 2 * math.exp(-2))
    )
    assert float(local_loss(query, key, negatives).accuracy) == 1
    # All equal: the loss of a guess among three, and a tie is no hit.
    collapsed = local_loss(query, key, key.repeat(2, 1))
    assert float(collapsed.loss) == pytest.approx(math.log(3)) and float(collapsed.accuracy) == 0


def test_total_is_the_sum_of_its_parts():
    query, key, negatives, neighbours = unit(4, 8), unit(4, 8, seed=1), unit(9, 8, seed=2), unit(2, 4, 8, seed=3)
    losses = drasclr_loss(query, key, negatives, neighbours, temperature=0.2, beta=0.7)
    local, regional = local_loss(query, key, negatives), regional_loss(neighbours, key, negatives)
    assert float(losses.total) == pytest.approx(float(local.loss) + 0.7 * float(regional.loss))
    assert (losses.local, losses.regional) == (local.loss, regional.loss)
    assert (losses.local_accuracy, losses.regional_accuracy) == (local.accuracy, regional.accuracy)
    alone = drasclr_loss(query, key, negatives)
    assert float(alone.total) == pytest.approx(float(local.loss))
    assert float(alone.regional) == 0 and alone.regional_accuracy.isnan()


def test_gradient_reaches_queries_and_neighbours_only():
    query, neighbours = unit(3, 4).requires_grad_(), unit(2, 3, 4, seed=1).requires_grad_()
    key, negatives = unit(3, 4, seed=2).requires_grad_(), unit(5, 4, seed=3).requires_grad_()
    drasclr_loss(query, key, negatives, neighbours).total.backward()
    assert query.grad.abs().max() > 0 and neighbours.grad.abs().max() > 0
    assert key.grad is None and negatives.grad is None
    assert torch.autograd.gradcheck(
        lambda q, r: drasclr_loss(q, key, negatives, r).total, (unit(3, 4).requires_grad_(), neighbours)
    )


def test_order_of_negatives_and_a_common_rotation_change_nothing():
    query, key, negatives = unit(4, 8), unit(4, 8, seed=1), unit(9, 8, seed=2)
    loss = local_loss(query, key, negatives).loss
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    torch.testing.assert_close(local_loss(query, key, negatives.flip(0)).loss, loss)
    torch.testing.assert_close(local_loss(query @ rotation, key @ rotation, negatives @ rotation).loss, loss)


def test_samples_without_negatives_cost_nothing():
    query, key = unit(2, 4).requires_grad_(), unit(2, 4, seed=1)
    nothing = local_loss(query, key, torch.zeros(0, 4))
    nothing.loss.backward()
    assert float(nothing.loss.detach()) == 0 and nothing.accuracy.isnan()
    assert query.grad.abs().max() == 0
    # Only the second sample has one; the accuracy is its alone.
    ignore = torch.tensor([[True], [False]])
    some = local_loss(key, key, unit(1, 4, seed=2), ignore=ignore)
    assert float(some.accuracy) == 1
    assert float(some.loss) == pytest.approx(looped(key, key, unit(1, 4, seed=2), 0.2, ignore)[0])


def test_collapse_shows():
    same = unit(1, 16).repeat(20, 1)
    assert float(drasclr_loss(same, same, same).key_spread) == pytest.approx(0, abs=1e-6)
    assert float(drasclr_loss(unit(20, 16), unit(20, 16), unit(50, 16, seed=1)).key_spread) > 0.9
    assert drasclr_loss(same[:1], same[:1], same[:0]).key_spread.isnan()


def test_half_precision_and_autocast_are_computed_in_full():
    query, key, negatives = (x.float() for x in (unit(4, 8), unit(4, 8, seed=1), unit(9, 8, seed=2)))
    exact = local_loss(query, key, negatives.half().float()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = drasclr_loss(query, key, negatives.half(), query[None])
    assert result.total.dtype == torch.float32
    torch.testing.assert_close(result.local, exact)


def test_bad_input():
    query, negatives = unit(3, 4), unit(5, 4)
    with pytest.raises(ValueError, match=r"^Queries and keys"):
        local_loss(query, query[:2], negatives)
    with pytest.raises(ValueError, match=r"^negatives"):
        local_loss(query, query, unit(5, 3))
    with pytest.raises(ValueError, match=r"^temperature"):
        local_loss(query, query, negatives, temperature=0)
    with pytest.raises(ValueError, match=r"^ignore"):
        local_loss(query, query, negatives, ignore=torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^neighbours"):
        regional_loss(query, query, negatives)
