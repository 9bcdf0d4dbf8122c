"""Folds that never split a group, and probes that two scans of one person do not mislead."""

import numpy as np
import pandas as pd
import pytest
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.features import probe as probes
from nnunet_alice.features.folds import bootstrap_samples, count_groups, make_folds, with_intervals
from nnunet_alice.features.probe import probe
from nnunet_alice.features.probe_data import ProbeData, load_table


def scans(people=60, each=2, seed=0):
    """Features that tell persons apart and nothing else; a person's scans are nearly alike."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(people), each)
    features = rng.normal(size=(people, 30))[groups] + 0.05 * rng.normal(size=(len(groups), 30))
    return features, groups, rng


@pytest.mark.parametrize("stratified", [False, True])
def test_no_group_is_ever_split(stratified):
    rng = np.random.default_rng(0)
    groups = rng.choice(["ann", "bob", *"abcdefghijklmn"], 90)
    strata = rng.integers(2, size=90) if stratified else None
    tested = []
    for train, test in make_folds(90, groups, strata, 4, seed=1):
        assert not set(groups[train]) & set(groups[test])
        tested += test.tolist()
    assert sorted(tested) == list(range(90))
    again, other = (make_folds(90, groups, strata, 4, seed=seed) for seed in (1, 2))
    assert again[0][1].tolist() != other[0][1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_labels_of_pure_chance_are_not_found_in_repeated_scans(task):
    """Person by person a coin; without groups the other scan of a person gives its label away."""
    found = {"groups": [], "none": []}
    for seed in range(3):
        features, groups, rng = scans(seed=seed)
        label = rng.normal(size=60)[groups]
        target = np.where(label > 0, "ill", "well") if task == "classification" else label
        cases = np.array([f"{group}_{number}" for number, group in enumerate(groups)])
        for name, own in (("groups", groups.astype(str)), ("none", None)):
            result = probe(ProbeData(cases, features, target, groups=own), task, folds=4)
            found[name].append(result.metrics.iloc[0 if task == "classification" else 2]["value"])
    chance, leak = (0.5, 0.08) if task == "classification" else (0.0, 0.25)
    assert np.mean(found["groups"]) < chance + 0.05 and np.mean(found["none"]) > chance + leak


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_inner_folds_keep_groups_together_too(task, monkeypatch):
    features, groups, rng = scans(people=30)
    seen = []

    def spy(count, own, *rest):
        splits = make_folds(count, own, *rest)
        seen.append(own is not None and all(not set(own[train]) & set(own[test]) for train, test in splits))
        return splits

    monkeypatch.setattr(probes, "make_folds", spy)
    target = rng.choice(["a", "b"], 60) if task == "classification" else rng.normal(size=60)
    result = probe(ProbeData(groups.astype(str), features, target, groups=groups.astype(str)), task, folds=3)
    assert seen == [True] * 4  # outer folds, and the inner ones of each
    assert (result.predictions.groupby("group")["fold"].nunique() == 1).all()


def test_intervals_come_from_whole_groups():
    groups = np.array(list("aabbbc"))
    for sample in bootstrap_samples(6, groups, 20, np.random.default_rng(0)):
        counts = np.bincount(sample, minlength=6)
        assert counts[0] == counts[1] and counts[2] == counts[3] == counts[4]
        assert counts[0] + counts[2] + counts[5] == 3
    assert count_groups(groups, groups != "a") == 2 and count_groups(None, groups != "a") == 4


def test_the_bootstrap_draws_patients_with_all_their_cases():
    samples = []

    def metric(at):
        samples.append(at)
        return float(at.mean())

    groups = np.array(list("abacba"))
    table = with_intervals({"m": metric}, 6, groups, seed=5)
    members = {"a": [0, 2, 5], "b": [1, 4], "c": [3]}
    for sample in samples[:-1]:
        counts = np.bincount(sample, minlength=6)
        assert all(len({counts[i] for i in own}) == 1 for own in members.values())
        assert sum(counts[own[0]] for own in members.values()) == 3
    assert np.array_equal(samples[-1], np.arange(6))
    row = table.iloc[0]
    assert row.low < row.value == 2.5 < row.high
    pd.testing.assert_frame_equal(table, with_intervals({"m": metric}, 6, groups, seed=5))


def test_cases_of_one_patient_widen_the_interval():
    rng = np.random.default_rng(0)
    errors = np.repeat(rng.normal(size=20), 10)  # ten scans each, all alike
    metric = {"m": lambda at: float(errors[at].mean())}
    of_patients = with_intervals(metric, 200, np.arange(200) // 10, seed=0).iloc[0]
    of_cases = with_intervals(metric, 200, None, seed=0).iloc[0]
    assert of_patients.high - of_patients.low > 2 * (of_cases.high - of_cases.low)


def test_too_few_groups_are_refused():
    features, groups, rng = scans(people=8)
    data = ProbeData(groups.astype(str), features, rng.normal(size=16), groups=groups.astype(str))
    with refused(InputError, option="folds", value=3):
        probe(data, "regression", folds=3)
    ill = np.where(groups < 2, "ill", "well")
    with refused(InputError, option="folds", value="ill"):
        probe(ProbeData(groups.astype(str), features, ill, groups=groups.astype(str)), "classification", folds=2)
    with refused(InputError, value=3):
        make_folds(6, np.array(list("aabbcc")), np.array([0, 0, 1, 1, 1, 1]), 3, 0)


def test_the_table_gives_groups_and_without_them_repeats_are_noticed(tmp_path, caplog):
    table = tmp_path / "labels.csv"
    table.write_text("case,grade,patient\nP1_a,1,P1\nP1_b,2,P1\nP2_a,3,P2\n")
    cases, features = np.array(["P1_a", "P1_b", "P2_a"]), np.zeros((3, 2))
    grouped = load_table(table, cases, features, "grade", "regression", group="patient")
    assert grouped.groups.tolist() == ["P1", "P1", "P2"] and not caplog.records
    assert load_table(table, cases, features, "grade", "regression").groups is None
    assert "P1_a and P1_b look like two scans of one person" in caplog.text
    with refused(InputError, path=table, column="person"):
        load_table(table, cases, features, "grade", "regression", group="person")
