"""Metrics of whole cases against naive versions."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as sk

from nnunet_alice.features.metrics import area_under_curve, classification_metrics, concordance, regression_metrics

ALL = np.arange


def naive_concordance(times, events, risks):
    right = pairs = 0
    for i in range(len(times)):
        for j in range(len(times)):
            if events[i] and (times[j] > times[i] or (times[j] == times[i] and not events[j])):
                pairs += 1
                right += 1.0 if risks[i] > risks[j] else 0.5 * (risks[i] == risks[j])
    return right / pairs


def test_concordance_is_the_naive_one_with_ties():
    rng = np.random.default_rng(1)
    times, events, risks = rng.integers(1, 8, 30), rng.random(30) < 0.5, rng.integers(0, 5, 30)
    assert concordance(times, events, risks) == pytest.approx(naive_concordance(times, events, risks))
    assert np.isnan(concordance(times, np.zeros(30, bool), risks))


def test_area_under_curve_with_ties_is_sklearns():
    rng = np.random.default_rng(0)
    positive, score = rng.random(60) < 0.3, rng.integers(8, size=60)
    assert area_under_curve(positive, score) == pytest.approx(sk.roc_auc_score(positive, score))
    assert np.isnan(area_under_curve(np.ones(3, dtype=bool), np.arange(3)))


def test_two_classes_have_the_usual_brier_score_and_area():
    truth, second = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.8])
    metrics = classification_metrics(truth, np.stack([1 - second, second], axis=1), (second > 0.5).astype(int))
    values = {name: metric(ALL(4)) for name, metric in metrics.items()}
    assert values["auc"] == pytest.approx(0.75)
    assert values["brier"] == pytest.approx(np.mean((second - truth) ** 2))
    assert values["balanced_accuracy"] == values["f1"] == pytest.approx(0.5)


def test_of_three_classes_the_area_is_the_mean_against_the_rest():
    truth = np.array([0, 1, 2, 0, 1, 2])
    perfect = np.eye(3)[truth]
    metrics = classification_metrics(truth, perfect, truth)
    assert [metrics[name](ALL(6)) for name in ("auc", "balanced_accuracy", "f1", "brier")] == [1, 1, 1, 0]
    assert np.isnan(metrics["auc"](np.array([0, 1, 3])))  # a sample without the third class
    worst = classification_metrics(truth, np.eye(3)[(truth + 1) % 3], (truth + 1) % 3)
    assert worst["brier"](ALL(6)) == 2 and worst["f1"](ALL(6)) == 0


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    truth = rng.integers(classes, size=60)
    probabilities = rng.dirichlet(np.ones(classes), size=60)
    probabilities[truth == 0, 0] += 0.2
    probabilities = np.round(probabilities / probabilities.sum(axis=1, keepdims=True), 1)  # with ties
    predicted = probabilities.argmax(axis=1)
    metrics = classification_metrics(truth, probabilities, predicted)
    found = {name: metric(ALL(60)) for name, metric in metrics.items()}
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    some = np.flatnonzero(truth)  # class 0 is predicted and never true
    assert metrics["f1"](some) == pytest.approx(sk.f1_score(truth[some], predicted[some], average="macro"))
    area = [sk.roc_auc_score(truth == c, probabilities[:, c]) for c in ([1] if classes == 2 else range(classes))]
    assert found["auc"] == pytest.approx(np.mean(area))
    true, said = rng.normal(size=60), rng.integers(5, size=60)
    found = {name: metric(ALL(60)) for name, metric in regression_metrics(true, said).items()}
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(true, said))
    assert found["r2"] == pytest.approx(sk.r2_score(true, said))
    assert found["spearman"] == pytest.approx(spearmanr(true, said).statistic)


def test_numbers_that_are_not_known_do_not_count():
    truth, said = np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.0, 3.0, 100.0, 4.0])
    metrics = regression_metrics(truth, said)
    assert metrics["mae"](ALL(4)) == pytest.approx(1 / 3)
    assert metrics["r2"](ALL(4)) == pytest.approx(1 - 1 / ((truth[[0, 1, 3]] - 7 / 3) ** 2).sum())
    assert metrics["spearman"](ALL(4)) == pytest.approx(1)
