"""Losses of whole cases against hand values and naive versions."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from nnunet_alice.targets.losses import (
    CoxLoss,
    MaskedBinaryCrossEntropy,
    StandardisedHuber,
    WeightedCrossEntropy,
    cox_loss,
)


def naive_cox(risks, times, events):
    """Negative log partial likelihood, event by event."""
    terms = []
    for i in range(len(risks)):
        if events[i]:
            at_risk = sum(np.exp(risks[j]) for j in range(len(risks)) if times[j] >= times[i])
            terms.append(np.log(at_risk) - risks[i])
    return sum(terms) / max(1, len(terms))


@pytest.fixture
def patients():
    rng = np.random.default_rng(3)
    return rng.normal(size=12), rng.integers(1, 6, 12).astype(float), rng.random(12) < 0.6  # with ties


def test_cox_loss_is_the_naive_one_with_ties(patients):
    risks, times, events = patients
    found = cox_loss(*(torch.tensor(part) for part in patients))
    assert found.item() == pytest.approx(naive_cox(risks, times, events))
    assert cox_loss(torch.tensor(risks + 5), torch.tensor(times), torch.tensor(events)).item() == pytest.approx(
        naive_cox(risks, times, events)
    )


def test_cox_loss_without_an_event_is_zero(patients):
    risks, times, _ = (torch.tensor(part) for part in patients)
    assert cox_loss(risks, times, torch.zeros(12, dtype=torch.bool)).item() == 0


def test_remembered_risks_give_a_batch_the_gradient_of_the_whole(patients):
    """Once all cases were seen, the batch's gradient is that of the full likelihood, scaled by cases a batch."""
    risks, times, events = (torch.tensor(part, dtype=torch.float32) for part in patients)
    loss = CoxLoss(times.tolist(), events.bool().tolist())
    whole = risks.clone().requires_grad_()
    cox_loss(whole, times, events.bool()).backward()
    truth = torch.stack([times, events, torch.arange(12.0)], dim=1)
    loss(risks[:, None], truth)
    part = risks[3:7].clone().requires_grad_()
    loss(part[:, None], truth[3:7]).backward()
    torch.testing.assert_close(part.grad, whole.grad[3:7] * 12 / 4)


def test_only_cases_that_were_seen_are_at_risk(patients):
    risks, times, events = (torch.tensor(part, dtype=torch.float32) for part in patients)
    loss = CoxLoss(times.tolist(), events.bool().tolist())
    truth = torch.stack([times, events, torch.arange(12.0)], dim=1)
    first = loss(risks[:5, None], truth[:5])
    torch.testing.assert_close(first, cox_loss(risks[:5], times[:5], events[:5].bool()))
    assert loss.seen.tolist() == [True] * 5 + [False] * 7
    loss.eval()
    before = loss.risks.clone()
    loss(risks[:, None] + 1, truth)
    assert torch.equal(loss.risks, before)


def test_a_risk_that_is_not_finite_spoils_its_own_step_alone(patients):
    risks, times, events = (torch.tensor(part, dtype=torch.float32) for part in patients)
    loss = CoxLoss(times.tolist(), events.bool().tolist())
    truth = torch.stack([times, events, torch.arange(12.0)], dim=1)
    bad = risks[:4].clone()
    bad[0] = float("nan")
    assert not loss(bad[:, None], truth[:4]).isfinite()
    assert loss.seen.tolist() == [False] + [True] * 3 + [False] * 8
    assert loss(risks[4:, None], truth[4:]).isfinite()


def test_class_weights_count_cases_and_not_weights():
    outputs, truth = torch.randn(4, 3), torch.tensor([[0.0], [2.0], [2.0], [1.0]])
    weights = [0.5, 1.0, 4.0]
    each = functional.cross_entropy(outputs, truth[:, 0].long(), reduction="none")
    expected = (each * torch.tensor([0.5, 4.0, 4.0, 1.0])).mean()
    torch.testing.assert_close(WeightedCrossEntropy(weights)(outputs, truth), expected)


def test_unknown_labels_have_no_loss_and_no_gradient():
    outputs = torch.randn(3, 2, requires_grad=True)
    truth = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [float("nan"), float("nan")]])
    loss = MaskedBinaryCrossEntropy([1.0, 3.0])(outputs, truth)
    loss.backward()
    known = [-functional.logsigmoid(outputs[0, 0]), -functional.logsigmoid(-outputs[1, 0])]
    known.append(-3 * functional.logsigmoid(outputs[1, 1]))
    torch.testing.assert_close(loss, sum(known) / 3)
    assert not outputs.grad[2].any() and outputs.grad[0, 1] == 0


def test_huber_is_in_standard_deviations():
    loss = StandardisedHuber([50.0], [10.0], 1.0)
    assert loss(torch.tensor([[0.5]]), torch.tensor([[55.0]])).item() == 0
    assert loss(torch.tensor([[0.0]]), torch.tensor([[55.0]])).item() == pytest.approx(0.125)
    assert loss(torch.tensor([[0.0]]), torch.tensor([[80.0]])).item() == pytest.approx(2.5)
