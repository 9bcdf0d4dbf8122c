"""The closed-form linear layer against scikit-learn's, in parts as at once; Dice against loops."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from nnunet_alice.methods.linear_probe import LinearDiscriminant, mean_dice


def samples(seed=0, count=600):
    """Three overlapping classes of uneven size in five features of which two are nearly the same."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=[0.8, 0.15, 0.05])
    features = rng.normal(size=(count, 5)) + labels[:, None] * np.array([1.0, 0.5, 0, -1.5, 0])
    features[:, 4] = features[:, 0] + 0.1 * rng.normal(size=count)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def test_the_layer_is_linear_discriminant_analysis_whatever_the_parts():
    features, labels = samples()
    whole, parts = (LinearDiscriminant(3, 5) for _ in range(2))
    whole.add(features, labels)
    for at in torch.arange(len(labels)).split(77):
        parts.add(features[at], labels[at])
    assert torch.equal(whole.predict(features), parts.predict(features))
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(features.double().numpy(), labels.numpy())
    same = whole.predict(features).numpy() == reference.predict(features.double().numpy())
    assert same.mean() > 0.99  # but for the shrinkage
    assert (whole.predict(features) == labels).double().mean() > 0.85


def test_a_class_without_samples_is_never_predicted_and_equal_features_do_not_break_it():
    features, labels = samples()
    layer = LinearDiscriminant(4, 5)
    layer.add(torch.cat([features[:, :4], features[:, :1]], dim=1), labels)
    found = layer.predict(features)
    assert torch.isfinite(layer.layer()[0]).all() and found.max() < 3
    constant = LinearDiscriminant(2, 3)
    constant.add(torch.ones(10, 3), torch.tensor([0] * 7 + [1] * 3))
    assert (constant.predict(torch.ones(4, 3)) == 0).all()  # the more frequent one


def test_dice_is_that_of_loops_over_the_classes_shown():
    rng = np.random.default_rng(1)
    truth, predicted = torch.tensor(rng.choice([0, 1, 3], 200)), torch.tensor(rng.choice(4, 200))
    expected = []
    for label in (1, 3):
        both = sum(t == p == label for t, p in zip(truth.tolist(), predicted.tolist(), strict=True))
        expected.append(2 * both / (truth.tolist().count(label) + predicted.tolist().count(label)))
    assert mean_dice(predicted, truth, 4) == pytest.approx(np.mean(expected))
    assert np.isnan(mean_dice(predicted, torch.zeros(200, dtype=torch.long), 4))
