"""Linear probes: find what is there, find nothing where nothing is, and say what is wrong with a table."""

import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from support.probed import linear, names, write_probed
from support.refused import refused

from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.features.probe import probe, rank_within
from nnunet_alice.features.probe_data import ProbeData, load_features, load_table


def value(result, metric):
    return result.metrics.set_index("metric").loc[metric]


@pytest.mark.slow
def test_classification_finds_a_linear_signal():
    features, signal = linear()
    result = probe(ProbeData(names(90), features, np.where(signal > 0, "ill", "well")), "classification")
    found = value(result, "auc")
    assert found.value > 0.85 and 0.7 < found.low < found.value < found.high <= 1
    table = result.predictions
    assert value(result, "balanced_accuracy").value == pytest.approx(
        balanced_accuracy_score(table["target"], table["predicted"])
    )
    pairs = [
        (one > other) + (one == other) / 2
        for _, fold in table.assign(rank=rank_within(table["score_well"].to_numpy(), table["fold"])).groupby("fold")
        for one in fold["rank"][fold["target"] == "well"]
        for other in fold["rank"][fold["target"] == "ill"]
    ]
    assert found.value == pytest.approx(np.mean(pairs), abs=0.05)  # pairs of one fold against all pairs of ranks


@pytest.mark.slow
def test_random_features_give_chance():
    """500 features of 80 cases separate anything in training: whatever leaks would show here."""
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(80, 500))
    aucs, correlations, explained = [], [], []
    for _ in range(2):
        chosen = probe(ProbeData(names(80), wide, rng.choice(["a", "b"], 80, p=[0.3, 0.7])), "classification")
        aucs.append(value(chosen, "auc").value)
        result = probe(ProbeData(names(80), wide, rng.normal(size=80)), "regression")
        correlations.append(value(result, "spearman").value)
        explained.append(value(result, "r2").value)
    assert 0.35 < np.mean(aucs) < 0.65 and abs(np.mean(correlations)) < 0.25 and np.max(explained) < 0.1


def test_a_label_has_no_part_in_its_own_prediction():
    """Neither in the model nor in the scaling: predictions of a fold follow from the other folds alone."""
    features, signal = linear()
    before = probe(ProbeData(names(90), features, signal), "regression")
    table = before.predictions
    held_out = (table["fold"] == 2).to_numpy()
    changed = np.where(held_out, signal + 1000, signal)
    after = probe(ProbeData(names(90), features, changed), "regression").predictions
    np.testing.assert_allclose(after["predicted"][held_out], table["predicted"][held_out])
    assert not np.allclose(after["predicted"][~held_out], table["predicted"][~held_out])
    scale = StandardScaler().fit(features[~held_out])
    model = Ridge(before.penalties[2]).fit(scale.transform(features[~held_out]), signal[~held_out])
    expected = model.predict(scale.transform(features[held_out]))
    np.testing.assert_allclose(table["predicted"][held_out], expected, rtol=1e-5)


@pytest.mark.slow
def test_three_classes():
    features, signal = linear()
    data = ProbeData(names(90), features, np.digitize(signal, [-0.6, 0.6]).astype(str))
    result = probe(data, "classification")
    assert value(result, "auc").low > 0.55 and set(result.predictions["predicted"]) <= {"0", "1", "2"}
    scores = result.predictions[["score_0", "score_1", "score_2"]].to_numpy()
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    ranks = [rank_within(score, result.predictions["fold"]) for score in scores.T]
    by_hand = [roc_auc_score(result.predictions["target"] == str(i), rank) for i, rank in enumerate(ranks)]
    assert value(result, "auc").value == pytest.approx(np.mean(by_hand))


def test_regression_finds_a_linear_signal():
    features, signal = linear()
    result = probe(ProbeData(names(90), features, signal), "regression")
    table = result.predictions
    assert value(result, "r2").value > 0.8
    assert value(result, "r2").value == pytest.approx(r2_score(table["target"], table["predicted"]))
    assert value(result, "mae").value == pytest.approx(mean_absolute_error(table["target"], table["predicted"]))
    ranks = [rank_within(table[name].to_numpy(), table["fold"]) for name in ("target", "predicted")]
    assert value(result, "spearman").value == pytest.approx(np.corrcoef(*ranks)[0, 1]) and ranks[0].max() == 1


def test_the_seed_fixes_everything():
    data = ProbeData(names(90), *linear())
    one, two, other = (probe(data, "regression", seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one.metrics, two.metrics)
    pd.testing.assert_frame_equal(one.predictions, two.predictions)
    assert not one.predictions["fold"].equals(other.predictions["fold"])
    assert one.predictions["fold"].value_counts().tolist() == [18] * 5


def test_survival():
    pytest.importorskip("sksurv", reason='needs scikit-survival: pip install "nnunet_alice[survival]"')
    features, signal = linear()
    rng = np.random.default_rng(0)
    time = rng.exponential(np.exp(-2 * signal))
    censored = rng.exponential(2 * np.median(time), 90)
    data = ProbeData(names(90), features, np.minimum(time, censored) + 1e-6, time <= censored)
    result = probe(data, "survival", folds=3)
    found = value(result, "c_index")
    assert found.value > 0.7 and found.low > 0.55
    table = result.predictions
    pairs = [  # whoever is known to have lived longer should have the smaller risk
        (one.risk > other.risk) + (one.risk == other.risk) / 2
        for one in table.itertuples()
        for other in table.itertuples()
        if one.event and one.target < other.target
    ]
    assert found.value == pytest.approx(np.mean(pairs), abs=1e-3)
    wide = ProbeData(names(90), rng.normal(size=(90, 100)), data.target, data.event)
    assert 0.3 < value(probe(wide, "survival", folds=3), "c_index").value < 0.7
    few = ProbeData(data.cases, features, data.target, np.arange(90) < 4)
    with refused(InputError, option="folds", value=4):
        probe(few, "survival")


def test_survival_without_its_library_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sksurv.linear_model", None)
    data = ProbeData(names(90), linear()[0], np.arange(1.0, 91), np.ones(90, dtype=bool))
    with refused(InputError, command='pip install "nnunet_alice[survival]"'):
        probe(data, "survival")


def test_cases_without_a_label_are_left_out_and_named(tmp_path, caplog):
    files = write_probed(tmp_path)
    table = pd.read_csv(files / "t.csv")
    table.loc[table["id"] == "case007", "severity"] = np.nan
    table[table["id"] != "case003"].to_csv(files / "t.csv", index=False)
    data = load_table(files / "t.csv", *load_features(files / "f.npz"), "severity", "regression")
    assert len(data.cases) == 88 and not {"case003", "case007"} & set(data.cases)
    assert "2 of 90 cases with features have no 'severity'" in caplog.text and "case003" in caplog.text


def test_one_case_alone_is_named(tmp_path):
    files = write_probed(tmp_path)
    pd.read_csv(files / "t.csv").iloc[[4]].assign(severity=3).to_csv(files / "t.csv", index=False)
    (only,) = pd.read_csv(files / "t.csv")["id"]
    with refused(InputError, case=only, column="severity"):
        load_table(files / "t.csv", *load_features(files / "f.npz"), "severity", "regression")


def test_a_case_without_a_group_is_one_of_its_own(tmp_path, caplog):
    files = write_probed(tmp_path)
    table = pd.read_csv(files / "t.csv").assign(who=["", *(f"p{n // 2}" for n in range(89))], event="1")
    table.loc[3, "event"] = ""
    table.to_csv(files / "t.csv", index=False)
    features = load_features(files / "f.npz")
    data = load_table(files / "t.csv", *features, "severity", "regression", group="who")
    assert len(data.cases) == 90 and data.groups[-2:].tolist() == ["p0", table["id"][0]] and not caplog.text
    table["severity"] = np.arange(1, 91)
    table.to_csv(files / "t.csv", index=False)
    load_table(files / "t.csv", *features, "severity", "survival", "event", group="who")
    assert "1 of 90 cases with features have no 'severity' or no 'event'" in caplog.text


def test_files_that_are_no_features(tmp_path):
    with refused(MissingFileError, path="none.npz", command="nnunet_alice features"):
        load_features(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with refused(InputError, path="bad.npz", command="nnunet_alice features"):
        load_features(tmp_path / "bad.npz")
    np.savez(tmp_path / "nan.npz", level="case", cases=names(2), features=np.array([[1.0], [np.nan]]))
    with refused(InputError, path="nan.npz", case="case001", value=1):
        load_features(tmp_path / "nan.npz")
    np.savez(tmp_path / "patch.npz", level="patch", cases=names(2), case=[0, 1], features=np.ones((2, 3)))
    with refused(InputError, path="patch.npz", value="patch", command="nnunet_alice features --level case"):
        load_features(tmp_path / "patch.npz")
