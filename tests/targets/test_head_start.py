"""Heads that start as a linear model: against the closed form, on features that say nothing, and by patients."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from support.tiny_networks import tiny_unet
from torch.nn import functional

from nnunet_alice.errors import InputError
from nnunet_alice.targets.head_start import PENALTIES, start_head
from nnunet_alice.targets.losses import MaskedBinaryCrossEntropy, StandardisedHuber
from nnunet_alice.targets.network import pooled_encoder

CASES = 40


@pytest.fixture
def network():
    torch.manual_seed(0)
    return pooled_encoder(tiny_unet("plain"), 1, stages=2, dropout=0.5).eval()


@pytest.fixture
def features(network):
    """Features whose differences between cases are small beside what all share, one of them constant."""
    generator = torch.Generator().manual_seed(1)
    shared = 3 * torch.randn(network.width, generator=generator)
    found = shared + 0.1 * torch.randn(CASES, network.width, generator=generator)
    return torch.where(torch.arange(network.width) == 5, found - found, found)


@pytest.mark.slow
def test_the_head_is_ridge_regression_where_errors_are_small(network, features):
    """Huber's loss is a square below delta; the ridge of scikit-learn has the sum in place of the mean."""
    plain = functional.layer_norm(features, [network.width])
    truth = plain[:, :1] - plain[:, 1:2] + 0.02 * torch.randn(CASES, 1, generator=torch.Generator().manual_seed(2))
    mean, deviation = truth.mean().item(), truth.std(correction=0).item()
    loss = StandardisedHuber([mean], [deviation], delta=100.0)
    penalty = start_head(network, features, truth, loss, [str(n) for n in range(CASES)], apart=False)[0]
    standard = StandardScaler().fit_transform(plain.double().numpy())
    ridge = Ridge(2 * CASES * penalty, tol=1e-10).fit(standard, (truth[:, 0].double().numpy() - mean) / deviation)
    said = network.head(features)[:, 0].detach().numpy()
    np.testing.assert_allclose(said, ridge.predict(standard), atol=2e-3)
    assert np.corrcoef(said, truth[:, 0])[0, 1] > 0.9


@pytest.mark.slow
def test_features_that_say_nothing_leave_the_mean(network, features):
    truth = torch.randn(CASES, 1, generator=torch.Generator().manual_seed(3))
    loss = StandardisedHuber([0.0], [1.0], delta=1.0)
    penalty = start_head(network, features, truth, loss, [str(n) for n in range(CASES)], apart=False)[0]
    assert penalty > 0.3 and network.head(features).std() < 0.5 * truth.std()


@pytest.mark.slow
def test_patients_are_left_out_as_a_whole(network, features):
    """Twins of random truth can be remembered by their twin, unless both are left out."""
    twins = features[: CASES // 2].repeat(2, 1) + 1e-3 * torch.randn(
        CASES, network.width, generator=torch.Generator().manual_seed(4)
    )
    truth = (torch.rand(CASES // 2, 1, generator=torch.Generator().manual_seed(5)) > 0.5).float().repeat(2, 1)
    loss = MaskedBinaryCrossEntropy([1.0])
    apart = start_head(network, twins, truth, loss, [str(n) for n in range(CASES)], apart=False)[0]
    together = start_head(network, twins, truth, loss, [str(n % (CASES // 2)) for n in range(CASES)], apart=False)[0]
    assert together > 3 * apart and {apart, together} <= set(PENALTIES)
    with pytest.raises(InputError, match="one patient"):
        start_head(network, twins, truth, loss, ["a"] * CASES, apart=False)


@pytest.mark.slow
def test_outputs_that_stand_apart_have_penalties_of_their_own(features):
    """A column that features tell needs a small penalty, chance a large one; a shared one would spoil either."""
    torch.manual_seed(0)
    network = pooled_encoder(tiny_unet("plain"), 2, stages=2, dropout=0.5).eval()
    plain = functional.layer_norm(features, [network.width])
    told = plain @ torch.randn(network.width, generator=torch.Generator().manual_seed(6))
    chance = torch.randn(CASES, generator=torch.Generator().manual_seed(3))
    truth = torch.stack([told, chance], dim=1)
    truth = (truth - truth.mean(dim=0)) / truth.std(dim=0, correction=0)
    loss = StandardisedHuber([0.0, 0.0], [1.0, 1.0], delta=1.0)
    own = start_head(network, features, truth, loss, [str(n) for n in range(CASES)], apart=True)
    assert own[0] < 0.1 < own[1]
    assert np.corrcoef(network.head(features)[:, 0].detach(), truth[:, 0])[0, 1] > 0.95
    shared = start_head(network, features, truth, loss, [str(n) for n in range(CASES)], apart=False)
    assert shared[0] == shared[1]
