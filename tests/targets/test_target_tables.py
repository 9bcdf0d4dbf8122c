"""Tables of labels become targets and folds; what is wrong is refused, and nothing is written."""

import json

import numpy as np
import pandas as pd
import pytest
from support.refused import refused
from support.small_datasets import set_folders

from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.targets.definitions import DatasetTargets, TargetDefinition, load_targets
from nnunet_alice.targets.labels import merge, read_labels
from nnunet_alice.targets.preparing import prepare_targets
from nnunet_alice.targets.splits import check_no_leak, check_training_cases, make_splits, strata

DATASET = "Dataset900_Small"
CASES = [f"case{n:02d}" for n in range(40)]


@pytest.fixture
def labels(tmp_path):
    """Path of a table and a function that writes it."""

    def write(**columns):
        table = pd.DataFrame({"scan": CASES, **columns})
        table.to_csv(tmp_path / "labels.csv", index=False)
        return tmp_path / "labels.csv"

    return write


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Forty empty preprocessed cases."""
    set_folders(monkeypatch, tmp_path)
    folder = tmp_path / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True)
    for case in CASES:
        (folder / f"{case}.b2nd").touch()
        (folder / f"{case}_seg.b2nd").touch()
    return folder.parent


KIND = ["ill" if n % 4 == 0 else "healthy" for n in range(40)]


def test_classes_are_numbered_in_their_order_and_rows_without_one_left_out(labels):
    kinds = [*KIND[:-2], None, None]
    targets = read_labels(labels(kind=kinds), ["kind"], "classification", CASES)
    definition = targets.definitions["kind"]
    assert definition.classes == ("healthy", "ill")
    values = definition.values(targets.table)
    assert len(values) == 38 and values.loc["case00", "kind"] == 1 and values.loc["case01", "kind"] == 0


def test_multilabel_rows_may_lack_some_labels_but_not_all(labels):
    path = labels(a=[None, None, *[n % 2 for n in range(38)]], b=[None, 1, *[n % 3 == 0 for n in range(38)]])
    table = pd.read_csv(path, dtype=str).replace({"True": "1", "False": "0"})
    table.to_csv(path, index=False)
    targets = read_labels(path, ["a", "b"], "multilabel", CASES)
    values = targets.definitions["a"].values(targets.table)
    assert "case00" not in values.index and np.isnan(values.loc["case01", "a"]) and values.loc["case01", "b"] == 1


@pytest.mark.parametrize(
    ("columns", "task", "values", "fields"),
    [
        (["age"], "classification", {"kind": KIND}, {"column": "age"}),
        (["kind"], "regression", {"kind": KIND}, {"column": "kind", "value": "ill"}),
        (["age"], "regression", {"age": [50] * 40}, {"column": "age"}),
        (["kind"], "classification", {"kind": ["ill"] * 40}, {"column": "kind", "value": 1}),
        (["a"], "multilabel", {"a": [0, 1, 2, 1] * 10}, {"column": "a", "value": "2"}),
        (["t", "e"], "survival", {"t": [0, *range(1, 40)], "e": [0, 1] * 20}, {"column": "t"}),
        (["t", "e"], "survival", {"t": range(1, 41), "e": [0, 3] * 20}, {"column": "e", "value": "3"}),
        (["t"], "survival", {"t": range(1, 41)}, {"value": "survival"}),
        (["kind", "scan"], "classification", {"kind": KIND}, {"value": "classification"}),
        (["age", "age"], "regression", {"age": range(40)}, {"column": "age", "option": "--target"}),
    ],
)
def test_values_that_the_task_cannot_learn_are_refused(labels, columns, task, values, fields):
    with refused(InputError, **fields):
        read_labels(labels(**values), columns, task, CASES)


def test_a_table_that_spells_cases_otherwise_is_refused(labels):
    """A spreadsheet ate the zeros of ten names: the other thirty still match."""
    path = labels(age=range(40))
    path.write_text(path.read_text().replace("case0", "case"))
    with refused(InputError, case="case00", path=path, value="case0"):
        read_labels(path, ["age"], "regression", CASES)


def test_cases_are_those_of_the_dataset_once_each(labels, caplog):
    path = labels(age=range(40))
    with refused(InputError, case="other", path=path):
        read_labels(path, ["age"], "regression", ["other"])
    read_labels(path, ["age"], "regression", CASES[:30])
    assert "10 rows" in caplog.text and "case30, case31" in caplog.text
    read_labels(path, ["age"], "regression", [*CASES, "more1", "more2"])
    assert "2 of 42 cases of the dataset have no value in" in caplog.text and "more1, more2." in caplog.text
    pd.concat([pd.read_csv(path)] * 2).to_csv(path, index=False)
    with refused(InputError, case="case00", path=path):
        read_labels(path, ["age"], "regression", CASES)


def patients(of: int) -> list[str]:
    return [f"p{n // of}" for n in range(40)]


@pytest.mark.parametrize("of", [1, 4])
def test_folds_are_stratified_and_keep_patients_together(labels, of):
    path = labels(kind=KIND, patient=patients(of))
    targets = read_labels(path, ["kind"], "classification", CASES, group_column="patient")
    splits = make_splits(targets, targets.definitions["kind"], CASES, 5, seed=3)
    assert sorted(case for split in splits for case in split["val"]) == CASES
    for split in splits:
        assert sorted(split["train"] + split["val"]) == CASES
        sides = [set(targets.groups(split[side])) for side in ("train", "val")]
        assert not sides[0] & sides[1]
        assert sum(KIND[CASES.index(case)] == "ill" for case in split["val"]) == 2
    assert splits == make_splits(targets, targets.definitions["kind"], CASES, 5, seed=3)
    assert splits != make_splits(targets, targets.definitions["kind"], CASES, 5, seed=4)


def test_numbers_are_stratified_by_quantile_and_cases_without_them_are_in_the_folds(labels):
    ages = np.random.default_rng(0).permutation(40).astype(float)
    path = labels(age=[*ages[:30], *[None] * 10])
    targets = read_labels(path, ["age"], "regression", CASES)
    definition = targets.definitions["age"]
    stratum = strata(definition, definition.values(targets.table))
    assert sorted(np.bincount(stratum)) == [6] * 5
    for split in make_splits(targets, definition, CASES, 3, seed=0):
        old = [case for case in split["val"] if CASES.index(case) < 30]
        assert len(old) == 10 and len(split["val"]) in (13, 14)
        assert abs(np.mean([ages[CASES.index(case)] for case in old]) - ages[:30].mean()) < 4


def test_times_are_stratified_apart_for_events(labels):
    path = labels(t=range(1, 41), e=[1, 0, 0, 0] * 10)
    targets = read_labels(path, ["t", "e"], "survival", CASES)
    for split in make_splits(targets, targets.definitions["t"], CASES, 2, seed=0):
        assert sum(CASES.index(case) % 4 == 0 for case in split["val"]) == 5


def test_a_class_that_a_fold_cannot_learn_is_refused(labels):
    path = labels(kind=["rare", *KIND[1:]])
    targets = read_labels(path, ["kind"], "classification", CASES)
    with refused(InputError, value="rare"):
        make_splits(targets, targets.definitions["kind"], CASES, 5, seed=0)


def test_training_cases_have_to_differ():
    age = TargetDefinition("age", "regression", ("age",))
    for values in (pd.DataFrame({"age": []}), pd.DataFrame({"age": [3.0, 3.0]})):
        with pytest.raises(InputError):
            check_training_cases(age, values, "fold 0")
    check_training_cases(age, pd.DataFrame({"age": [3.0, 4.0]}), "fold 0")


def test_a_patient_on_both_sides_is_found(tmp_path):
    table = pd.DataFrame({"case": ["a1", "a2", "b1", "c1"], "group": ["a", "a", "b", None]})
    targets = DatasetTargets(table, {}, tmp_path)
    check_no_leak(targets, {"train": ["a1", "a2"], "val": ["b1", "c1"]}, tmp_path)
    with refused(InputError, case="a1 and a2", option="--new_splits"):
        check_no_leak(targets, {"train": ["a1", "b1"], "val": ["a2"]}, tmp_path)


def test_a_second_target_joins_the_first_and_patients_have_to_agree(labels):
    first = read_labels(
        labels(age=range(40), patient=patients(2)), ["age"], "regression", CASES, group_column="patient"
    )
    second = read_labels(labels(kind=KIND), ["kind"], "classification", CASES)
    both = merge(first, second)
    assert set(both.definitions) == {"age", "kind"} and list(both.table.columns) == ["case", "group", "age", "kind"]
    assert both.groups(["case00", "case01", "case02"]) == ["group p0", "group p0", "group p1"]
    other = read_labels(labels(kind=KIND, p=patients(4)), ["kind"], "classification", CASES, group_column="p")
    with refused(InputError, case="case02"):
        merge(first, other)


def test_a_target_of_the_same_name_is_replaced(labels):
    first = read_labels(labels(age=range(40)), ["age"], "regression", CASES)
    again = read_labels(labels(age=range(100, 140)), ["age"], "regression", CASES)
    both = merge(first, again)
    assert list(both.definitions) == ["age"] and both.definitions["age"].values(both.table).min().item() == 100


def test_two_targets_share_a_column_where_its_values_agree(labels):
    first = read_labels(labels(grade=[n % 3 for n in range(40)]), ["grade"], "classification", CASES)
    both = merge(first, read_labels(first.path, ["grade"], "regression", CASES, name="number"))
    for definition in both.definitions.values():
        assert definition.values(both.table)["grade"].tolist() == [n % 3 for n in range(40)]
    grades = [str(n % 3) for n in range(40)]
    for number, changed in ((3, "4"), (39, None)):
        path = labels(grade=[*grades[:number], changed, *grades[number + 1 :]])
        other = read_labels(path, ["grade"], "classification", CASES, name="other")
        with refused(InputError, case=CASES[number], column="grade", option="--name"):
            merge(first, other)


def test_trainers_choose_by_task_and_by_name(tmp_path):
    made = [("age", "regression"), ("size", "regression"), ("sex", "classification")]
    targets = DatasetTargets(pd.DataFrame(), {n: TargetDefinition(n, t, (n,)) for n, t in made}, tmp_path / "t.csv")
    assert targets.choose(None, ("classification", "multilabel"), "C").name == "sex"
    assert targets.choose("SIZE", ("regression",), "R").name == "size"
    with refused(InputError, path="t.csv", value="-tr R_targetage or -tr R_targetsize"):
        targets.choose(None, ("regression",), "R")
    for name, tasks in ((None, ("survival",)), ("sex", ("regression",))):
        with refused(InputError, path="t.csv", value=name):
            targets.choose(name, tasks, "R")


def test_what_is_stored_comes_back_with_folds(dataset, labels):
    path = labels(kind=KIND, patient=patients(2), t=range(1, 41), e=[0, 1] * 20)
    prepared = prepare_targets(DATASET, path, ["kind"], "classification", group_column="patient")
    assert prepared.labelled == prepared.cases == 40 and prepared.files == [dataset / "targets.csv"]
    splits = json.loads((dataset / "splits_final.json").read_text())
    assert len(splits) == 5
    again = prepare_targets(DATASET, path, ["t", "e"], "survival", name="death")
    assert json.loads((dataset / "splits_final.json").read_text()) == splits  # kept
    stored = load_targets(DATASET)
    assert set(stored.definitions) == {"kind", "death"} and again.definition == stored.definitions["death"]
    assert stored.definitions["death"].values(stored.table).loc["case03"].tolist() == [4, 1]
    assert "RegressionTrainer_survival" in again.command


def test_folds_that_leak_are_refused_and_nothing_is_stored(dataset, labels):
    (dataset / "splits_final.json").write_text(json.dumps([{"train": CASES[1:], "val": CASES[:1]}]))
    path = labels(kind=KIND, patient=patients(2))
    with refused(InputError, path="splits_final.json", option="--new_splits"):
        prepare_targets(DATASET, path, ["kind"], "classification", group_column="patient")
    assert not (dataset / "targets.csv").exists()
    prepare_targets(DATASET, path, ["kind"], "classification", group_column="patient", new_splits=True)
    assert len(json.loads((dataset / "splits_final.json").read_text())) == 5


def test_folds_without_a_validation_case_are_refused_and_nothing_is_stored(dataset, labels):
    (dataset / "splits_final.json").write_text(json.dumps([{"train": CASES[:30], "val": CASES[30:]}]))
    path = labels(age=[*range(30), *[None] * 10])
    with refused(InputError, path="splits_final.json", option="--new_splits"):
        prepare_targets(DATASET, path, ["age"], "regression")
    assert not (dataset / "targets.csv").exists()


def test_nothing_stored_names_the_command(dataset):
    with refused(NotPreparedError, command="nnunet_alice targets -d 900"):
        load_targets(DATASET)
