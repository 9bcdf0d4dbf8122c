"""Draws are nested and disjoint from test cases; the linked dataset leaves the original alone."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from support.benchmark_runs import CASES, settings, write_dataset
from support.labelled_runs import DATASET
from support.refused import refused

from nnunet_alice.benchmark import plan
from nnunet_alice.benchmark.parsing import parse_settings
from nnunet_alice.benchmark.splits import labelled, labelled_number, partitions, tuning_split
from nnunet_alice.benchmark.workspace import Workspace
from nnunet_alice.errors import InputError, OccupiedError

NAMES = [f"c{number:03d}" for number in range(40)]


def parsed(**changes):
    return parse_settings({"dataset": 4, "arms": {"scratch": None}, "test": 10} | changes)


def test_draws_are_nested_disjoint_from_the_test_and_repeatable():
    chosen = parsed(labels=[3, 5, "all"], tuning={"labels": 5, "cases": 8})
    (division,) = partitions(chosen, NAMES, None)
    assert len(division.test) == 10 and not set(division.test) & set(division.pool)
    assert {*division.test, *division.pool} == set(NAMES)
    draws = [labelled(division, 5, draw, chosen.seed) for draw in range(6)]
    assert len({tuple(draw) for draw in draws}) == 6 and all(len(draw) == 5 for draw in draws)
    for draw in range(6):
        assert set(labelled(division, 3, draw, chosen.seed)) < set(draws[draw]) <= set(division.pool)
        assert labelled(division, "all", draw, chosen.seed) == list(division.pool)
        train, validation = tuning_split(division, chosen, draw)
        assert len(validation) == 8 and not set(train) & set(validation) and {*train, *validation} <= set(division.pool)
    assert partitions(chosen, NAMES[::-1], None) == [division]


def test_folds_test_every_case_once():
    split = [{"train": NAMES[:i] + NAMES[i + 10 :], "val": NAMES[i : i + 10]} for i in range(0, 40, 10)]
    divisions = partitions(parsed(test={"folds": [0, 1, 2, 3]}), NAMES, split)
    assert sorted(case for division in divisions for case in division.test) == NAMES
    one, two = (labelled(division, 5, 0, 1) for division in divisions[:2])
    assert one != two and not set(one) & set(NAMES[:10])


@pytest.mark.parametrize(
    ("change", "split", "fields"),
    [
        ({"test": {"folds": [0]}}, None, {"option": "split"}),
        ({"test": {"folds": [5]}}, [{"train": ["c001"], "val": ["c002"]}], {"option": "test", "value": 5}),
        ({"test": {"folds": [0]}}, [{"train": ["c001"], "val": ["c001"]}], {"value": "fold0"}),
        ({"test": {"folds": [0]}}, [{"train": ["x"], "val": ["c001"]}], {"case": "x", "value": 1}),
        (
            {"test": {"folds": [0]}},
            [{"train": ["c001", "d1", "d2"], "val": ["d0", "c003"]}],
            {"case": "d0", "value": 3},
        ),
        ({"test": 40}, None, {"option": "test", "value": 40}),
        ({"labels": [31]}, None, {"option": "labels", "value": 31}),
    ],
)
def test_impossible_splits_are_refused(change, split, fields):
    with refused(InputError, **fields):
        partitions(parsed(**({"labels": [1]} | change)), NAMES, split)


def test_a_list_of_test_cases_that_are_not_there_is_refused(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps(["c001", "c002", "gone"]))
    with refused(InputError, case="gone", value=1):
        partitions(parsed(labels=[1], test={"file": str(tmp_path / "test.json")}), NAMES, None)


def test_cases_that_a_split_does_not_name_are_told(caplog):
    split = [{"train": NAMES[:10], "val": NAMES[10:20]}]
    (division,) = partitions(parsed(labels=[1], test={"folds": [0]}), NAMES, split)
    assert not {*division.pool, *division.test} & set(NAMES[20:])
    assert "names 20 of the 40 preprocessed cases; not used: c020, c021, c022, ..." in caplog.text


def test_too_much_tuning_is_refused():
    chosen = parsed(tuning={"labels": 20, "cases": 20})
    with refused(InputError, option="tuning"):
        tuning_split(partitions(chosen, NAMES, None)[0], chosen, 0)


@pytest.fixture
def base(tmp_path, monkeypatch):
    write_dataset(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_the_linked_dataset_is_whole_and_the_original_untouched(base):
    before = snapshot(base / "preprocessed")
    chosen = parse_settings(settings(base / "pretrained.pth"))
    workspace = Workspace(base / "bench", chosen)
    for _ in range(2):
        divisions = workspace.prepare()
        cells = [*plan.tuning_cells(chosen, divisions), *plan.test_cells(chosen, divisions)]
        folds = workspace.write_splits(plan.splits(chosen, divisions, cells))
    assert snapshot(base / "preprocessed") == before
    linked, original = workspace.dataset_folder, base / "preprocessed" / DATASET
    for folder in ("nnUNetPlans_3d_fullres", "gt_segmentations"):
        assert {p.name for p in (linked / folder).iterdir()} == {p.name for p in (original / folder).iterdir()}
        assert all(p.samefile(original / folder / p.name) for p in (linked / folder).iterdir())
    splits = json.loads((linked / "splits_final.json").read_text())
    assert len(splits) == len(folds) == 4  # 2 draws of 2 and of all
    assert {len(split["train"]) for split in splits} == {2, CASES - 3}
    assert not (original / "splits_final.json").exists()


def test_folds_stay_when_a_benchmark_grows(base):
    first = parse_settings(settings(base / "pretrained.pth"))
    more = parse_settings(settings(base / "pretrained.pth", labels=[1, 2, "all"], draws=3))
    folds = []
    for chosen in (first, more):
        workspace = Workspace(base / "bench", chosen)
        divisions = workspace.prepare()
        folds.append(workspace.write_splits(plan.splits(chosen, divisions, plan.test_cells(chosen, divisions))))
        workspace.remember(divisions)
    assert len(folds[1]) == 9 and folds[0].items() <= folds[1].items()


@pytest.mark.parametrize("of_all, runs", [(None, 2), (1, 1), (3, 3)])
def test_all_can_have_its_own_number_of_runs(base, of_all, runs):
    """What differs in draws of all is training alone; the draws of other numbers stay what they are."""
    chosen = parse_settings(settings(base / "pretrained.pth", draws_of_all=of_all))
    cells = plan.test_cells(chosen, Workspace(base / "bench", chosen).prepare())
    counts = Counter((cell.arm, cell.labels) for cell in cells)
    assert counts == {(arm, n): {2: 2, "all": runs}[n] for arm in ("scratch", "alice") for n in (2, "all")}
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_kill_between_the_two_files_of_splits_is_mended(base):
    workspace = Workspace(base / "bench", parse_settings(settings(base / "pretrained.pth")))
    workspace.remember(workspace.prepare())
    one, two = {"train": ["case00"], "val": ["case01"]}, {"train": ["case02"], "val": ["case01"]}
    workspace.write_splits([("a", one)])
    (workspace.dataset_folder / "splits_final.json").write_text(json.dumps([one, {"train": [], "val": []}]))
    assert workspace.write_splits([("a", one), ("b", two)]) == {"a": 0, "b": 1}
    assert json.loads((workspace.dataset_folder / "splits_final.json").read_text()) == [one, two]
    with refused(OccupiedError, path="splits_final.json", value="a"):
        workspace.write_splits([("a", two)])


def test_replanned_data_are_refused_and_other_configurations_are_not(base):
    workspace = Workspace(base / "bench", parse_settings(settings(base / "pretrained.pth")))
    workspace.remember(workspace.prepare())
    path = base / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"] = plans["configurations"]["3d_fullres"]
    path.write_text(json.dumps(plans))
    workspace.prepare()
    plans["configurations"]["3d_fullres"] = plans["configurations"]["3d_fullres"] | {"patch_size": [8, 16, 16]}
    path.write_text(json.dumps(plans))
    with refused(OccupiedError, path="nnUNetPlans.json"):
        workspace.prepare()


def test_all_has_one_number_in_folds_of_different_size():
    names = NAMES[:7]
    split = [{"train": [n for n in names if n not in v], "val": v} for v in (names[:3], names[3:5], names[5:])]
    chosen = parsed(test={"folds": [0, 1, 2]}, labels=[2, "all"])
    divisions = partitions(chosen, names, split)
    assert labelled_number("all", divisions) == 5 and labelled_number(2, divisions) == 2
    with refused(InputError, option="labels", value=30):
        partitions(parsed(labels=[30, "all"]), NAMES, None)


def test_another_benchmark_in_the_folder_is_refused(base):
    workspace = Workspace(base / "bench", parse_settings(settings(base / "pretrained.pth")))
    workspace.remember(workspace.prepare())
    with refused(OccupiedError, path="bench", option="test"):
        Workspace(base / "bench", parse_settings(settings(base / "pretrained.pth", test=2))).prepare()


def patients_of_two(names):
    """Two neighbours in the list are of one patient."""
    return {case: f"patient {number // 2}" for number, case in enumerate(sorted(names))}


def test_tuning_keeps_patients_together():
    """Trainers refuse a patient on both sides, so no rate would ever be known."""
    chosen = parsed(test=8, tuning={"labels": 4, "cases": 6})
    whole = partitions(chosen, NAMES, None)[0]
    patients = patients_of_two(whole.pool)
    pairs = replace(whole, groups=patients)
    for draw in range(5):
        train, validation = tuning_split(pairs, chosen, draw)
        assert len(train) == 4 * 2 and len(validation) == 6 * 2
        assert not {patients[case] for case in train} & {patients[case] for case in validation}
    with refused(InputError, option="tuning"):
        tuning_split(replace(whole, groups=dict.fromkeys(whole.pool, "one")), chosen, 0)


def test_draws_and_test_cases_are_whole_patients():
    """One scan of ten patients each is no ten scans of one; who has a patient's label has it for all scans."""
    patients, chosen = patients_of_two(NAMES), parsed(test=8, labels=[3, 5, "all"])
    (division,) = partitions(chosen, NAMES, None, patients)
    assert len(division.test) == 16 and len({patients[case] for case in division.test}) == 8
    for draw in range(4):
        few, more = (labelled(division, count, draw, chosen.seed) for count in (3, 5))
        for cases, count in ((few, 3), (more, 5)):
            assert len(cases) == 2 * count and len({patients[case] for case in cases}) == count
        assert set(few) < set(more)
    assert labelled(division, "all", 0, 1) == list(division.pool) and labelled_number("all", [division]) == 12
    with refused(InputError, option="labels", value=13):
        partitions(parsed(test=8, labels=[13]), NAMES, None, patients)
    with refused(InputError, option="test", value=20):
        partitions(parsed(test=20), NAMES, None, patients)


def test_patients_of_one_case_are_drawn_as_cases_are():
    chosen = parsed(labels=[3, "all"], tuning={"labels": 5, "cases": 8})
    (plain,), (alone,) = (partitions(chosen, NAMES, None, groups) for groups in (None, {n: f"p{n}" for n in NAMES}))
    assert plain == alone and plain.unit == alone.unit == "case"
    for draw in range(4):
        assert labelled(plain, 3, draw, 1) == labelled(alone, 3, draw, 1)
        assert tuning_split(plain, chosen, draw) == tuning_split(alone, chosen, draw)


def test_patients_show_all_strata():
    chosen = parsed(test=8, labels=[2])
    whole = partitions(chosen, NAMES, None, patients_of_two(NAMES))[0]
    strata = {case: int(int(case[1:]) >= 30) for case in whole.pool}
    for draw in range(6):
        assert {strata[case] for case in labelled(replace(whole, strata=strata), 2, draw, 1)} == {0, 1}


def test_a_dataset_that_comes_later_gets_the_splits_too(base):
    """nnU-Net would divide its cases by chance."""
    workspace = Workspace(base / "bench", parse_settings(settings(base / "pretrained.pth")))
    workspace.prepare()
    one = {"train": ["case00"], "val": ["case01"]}
    workspace.write_splits([("a", one)])
    later = workspace.preprocessed / "Dataset505_Located"
    later.mkdir()
    workspace.write_splits([("a", one)])
    assert json.loads((later / "splits_final.json").read_text()) == [one]
