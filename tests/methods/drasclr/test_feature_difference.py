"""Difference of features: hand values."""

import pytest
import torch

from nnunet_alice.methods.drasclr.representation import feature_difference


def test_hand_values():
    conditional = torch.tensor([[3.0, 4.0], [3.0, 2.0]])
    found = feature_difference([(conditional[:1], torch.tensor([[3.0, 5.0]])), (conditional[1:], conditional[1:])])
    assert found["relative"] == pytest.approx((1 / 38) ** 0.5)
    assert found["relative_to_spread"] == pytest.approx((1 / 2) ** 0.5)
    assert found["cosine"] == pytest.approx((29 / (5 * 34**0.5) + 1) / 2)


def test_equal_features_do_not_differ_and_the_mean_is_off_by_the_spread():
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).half() + 3
    assert feature_difference([(features, features)]) == pytest.approx(
        {"relative": 0, "relative_to_spread": 0, "cosine": 1}
    )
    mean = features.double().mean(dim=0).expand(50, 8)
    assert feature_difference([(features, mean)])["relative_to_spread"] == pytest.approx(1)


def test_one_patch_is_not_enough():
    with pytest.raises(ValueError):
        feature_difference([(torch.ones(1, 3), torch.ones(1, 3))])
