"""Settings: what is read, and what is refused with which words."""

import json

import pytest
from support.refused import refused

from nnunet_alice.benchmark.parsing import parse_settings, read_settings
from nnunet_alice.errors import InputError, MissingFileError

GOOD = {
    "dataset": 4,
    "test": 60,
    "arms": {"scratch": None, "alice": {"checkpoints": "a.pth", "learning_rates": "1e-3"}},
}


def test_yaml_and_its_relative_paths(tmp_path):
    (tmp_path / "b.yaml").write_text(
        "dataset: 4\nlabels: [3, all]\ntest: {file: cases.json}\n"
        "arms:\n  scratch: {learning_rates: [1e-2, 3e-3]}\n  alice: {checkpoints: [w/a.pth, /b.pth]}\n"
    )
    settings = parse_settings(read_settings(tmp_path / "b.yaml"))
    assert settings.arm("alice").checkpoints == (str(tmp_path / "w/a.pth"), "/b.pth")
    assert settings.arm("scratch").learning_rates == (0.003, 0.01) and settings.labels == (3, "all")
    assert settings.test.file == str(tmp_path / "cases.json")
    assert (settings.arm("scratch").trainer, settings.arm("alice").trainer) == (
        "FineTuneTrainer_scratch",
        "FineTuneTrainer",
    )
    assert settings.baseline_arm.name == "scratch"


def test_settings_survive_a_trip_through_json():
    for test in (60, {"folds": [0, 2]}, {"file": "x.json"}):
        settings = parse_settings(GOOD | {"test": test})
        assert parse_settings(json.loads(json.dumps(settings.plain()))) == settings


@pytest.mark.parametrize(
    ("change", "option", "value"),
    [
        ({"label": [3]}, "label", None),
        ({"arms": {"s": {"lr": 1}}}, "lr", None),
        ({"arms": {"a": {"checkpoints": "a.pth"}}}, "baseline", None),
        ({"arms": {"a b": None}}, "names", None),
        ({"arms": {"s": {"learning_rates": ["fast"]}}}, "arms: s: learning_rates", "fast"),
        ({"arms": {"s": {"learning_rates": [0]}}}, "learning_rates", None),
        ({"arms": {"s": {"trainer": "nnUNetTrainer"}}}, "s", None),
        ({"arms": {"s": {"parts": "head"}}}, "parts", "head"),
        ({"arms": {}}, "arms", None),
        ({"baseline": "x"}, "baseline", None),
        ({"test": {"cases": 3, "folds": [0]}}, "test", None),
        ({"test": {}}, "test", None),
        ({"labels": [0]}, "labels", 0),
        ({"labels": [5, 5]}, "labels", None),
        ({"labels": ["many"]}, "labels", "many"),
        ({"labels": [2.5]}, "labels", 2.5),
        ({"draws": 0}, "draws", None),
        ({"draws_of_all": 0}, "draws_of_all", None),
        ({"mirroring": "off "}, "mirroring", "off "),
        ({"keep_at": [100]}, "keep_at", None),
        ({"arms": ["scratch", "alice"]}, "arms", None),
        ({"arms": {"scratch": None, "alice": "a.pth"}}, "alice", "a.pth"),
        ({"arms": {"s": {"learning_rates": {"a": 1}}}}, "arms: s: learning_rates", {"a": 1}),
        ({"test": {"cases": "ten"}}, "cases", "ten"),
        ({"test": {"folds": [0, 0]}}, "folds", None),
        ({"test": {"folds": [-1]}}, "folds", None),
        ({"tuning": {"labels": "all"}}, "tuning: labels", "all"),
        ({"tuning": {"draws": 0}}, "tuning: draws", 0),
        ({"draws": 2.7}, "draws", 2.7),
        ({"seed": -1}, "seed", None),
        ({"tolerance_mm": "2,5"}, "tolerance_mm", "2,5"),
        ({"tolerance_mm": 0}, "tolerance_mm", None),
        ({"device": "gpu"}, "device", "gpu"),
        ({"test": {"file": 5}}, "file", None),
        ({"epochs": 2}, "keep_at", [1, 1]),
        ({"epochs": 8, "keep_at": [97]}, "keep_at", [8]),
    ],
)
def test_mistakes_are_named(change, option, value):
    with refused(InputError, option=option, value=value):
        parse_settings(GOOD | change)


def test_what_is_left_blank_is_the_default():
    blank = dict.fromkeys(("draws", "seed", "device", "tolerance_mm", "keep_at", "plans", "labels"))
    arms = {"scratch": {"trainer": None}, "alice": {"checkpoints": "a.pth", "learning_rates": 1e-3, "parts": None}}
    assert parse_settings(GOOD | blank | {"arms": arms}) == parse_settings(GOOD)


def test_a_rate_written_in_two_ways_is_one():
    settings = parse_settings(GOOD | {"arms": {"scratch": {"learning_rates": ["1e-2", 0.01, 3e-3]}}, "test": "60"})
    assert settings.arm("scratch").learning_rates == (0.003, 0.01) and settings.test.cases == 60


def test_unreadable_files(tmp_path):
    with refused(MissingFileError, path="no.yaml"):
        read_settings(tmp_path / "no.yaml")
    (tmp_path / "b.yaml").write_text("a: [")
    with refused(InputError, path="b.yaml"):
        read_settings(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("content", "key", "line"),
    [
        ("dataset: 4\ntest: 60\ndataset: 5\n", "dataset", 3),
        ("arms:\n  scratch:\n  alice: {checkpoints: a.pth}\n  scratch: {parts: all}\n", "scratch", 4),
        ("arms:\n  1:\n  '1':\n", "1", 3),
        ('{"test": 60,\n "test": 61}', "test", 2),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, content, key, line):
    """YAML takes the last one, and nobody would know which."""
    (tmp_path / "b.yaml").write_text(content)
    with refused(InputError, path="b.yaml", option=key) as caught:
        read_settings(tmp_path / "b.yaml")
    assert f"line {line}" in str(caught.value)


def test_what_is_merged_may_be_written_over(tmp_path):
    (tmp_path / "b.yaml").write_text(
        "arms:\n  a: &a {checkpoints: a.pth, parts: all}\n  b: &b {<<: *a, parts: encoder}\n  c: {<<: *b, plans: P}\n"
    )
    arms = read_settings(tmp_path / "b.yaml")["arms"]
    assert arms["b"]["parts"] == arms["c"]["parts"] == "encoder" and arms["c"]["plans"] == "P"


@pytest.mark.parametrize("value", ["All", "ALL", "many"])
def test_labels_that_are_no_number_are_answered_with_the_word_there_is(value):
    with pytest.raises(InputError, match=f"whole numbers above 0 or 'all', not '{value}'"):
        parse_settings(GOOD | {"labels": [value]})


def test_a_dataset_may_be_written_with_zeros(tmp_path):
    """YAML takes 027 for the octal number 23."""
    (tmp_path / "b.yaml").write_text("dataset: 027\ntest: 60\nseed: 0\narms:\n  scratch: {learning_rates: 0.01}\n")
    settings = parse_settings(read_settings(tmp_path / "b.yaml"))
    assert settings.dataset == "027" and settings.seed == 0 and settings.arm("scratch").learning_rates == (0.01,)
