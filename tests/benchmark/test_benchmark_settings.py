"""Settings: what is read, and what is refused with which words."""

import json

import pytest

from nnunet_alice.benchmark.settings import parse_settings, read_settings
from nnunet_alice.errors import InputError

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
    ("change", "message"),
    [
        ({"label": [3]}, "Unknown 'label' in settings; did you mean 'labels'"),
        ({"arms": {"s": {"lr": 1}}}, "Unknown 'lr' in arm 's'"),
        ({"arms": {"a": {"checkpoints": "a.pth"}}}, "No arm trains from scratch"),
        ({"arms": {"a b": None}}, "names are letters"),
        ({"arms": {"s": {"learning_rates": ["fast"]}}}, "'arms: s: learning_rates' has to be a number, not 'fast'"),
        ({"arms": {"s": {"learning_rates": [0]}}}, "above 0"),
        ({"arms": {"s": {"trainer": "nnUNetTrainer"}}}, "does not use a FineTuneTrainer"),
        ({"arms": {"s": {"parts": "head"}}}, "'all' or 'encoder'"),
        ({"arms": {}}, "lack 'arms'"),
        ({"baseline": "x"}, "not among the arms"),
        ({"test": {"cases": 3, "folds": [0]}}, "exactly one"),
        ({"test": {}}, "lack 'test'"),
        ({"labels": [0]}, "above 0"),
        ({"labels": [5, 5]}, "each once"),
        ({"labels": ["many"]}, "whole number"),
        ({"draws": 0}, "at least 1"),
        ({"draws_of_all": 0}, "'draws_of_all' has to be at least 1"),
        ({"mirroring": "off "}, "true or false"),
        ({"keep_at": [100]}, "between 1 and 99"),
        ({"arms": ["scratch", "alice"]}, "'arms' has to be a mapping"),
        ({"arms": {"scratch": None, "alice": "a.pth"}}, "Arm 'alice' has to be a mapping"),
        ({"arms": {"s": {"learning_rates": {"a": 1}}}}, "has to be a number"),
        ({"test": {"cases": "ten"}}, "'cases' has to be a whole number"),
        ({"test": {"folds": [0, 0]}}, "each once"),
        ({"test": {"folds": [-1]}}, "from 0"),
        ({"tuning": {"labels": "all"}}, "'tuning: labels' has to be a whole number"),
        ({"tuning": {"draws": 0}}, "'tuning: draws' has to be at least 1"),
        ({"draws": 2.7}, "'draws' has to be a whole number, not 2.7"),
        ({"seed": -1}, "'seed' has to be at least 0"),
        ({"tolerance_mm": "2,5"}, "'tolerance_mm' has to be a number"),
        ({"tolerance_mm": 0}, "'tolerance_mm' above 0"),
        ({"device": "gpu"}, "'device' is one of cuda, cpu, mps"),
        ({"test": {"file": 5}}, "'file' of 'test' is the name of a file"),
        ({"epochs": 2}, r"\[25, 50\] means the epochs \[1, 1\] of 2"),
        ({"epochs": 8, "keep_at": [97]}, "to lie before the last"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        parse_settings(GOOD | change)


def test_what_is_left_blank_is_the_default():
    blank = dict.fromkeys(("draws", "seed", "device", "tolerance_mm", "keep_at", "plans", "labels"))
    arms = {"scratch": {"trainer": None}, "alice": {"checkpoints": "a.pth", "learning_rates": 1e-3, "parts": None}}
    assert parse_settings(GOOD | blank | {"arms": arms}) == parse_settings(GOOD)


def test_a_rate_written_in_two_ways_is_one():
    settings = parse_settings(GOOD | {"arms": {"scratch": {"learning_rates": ["1e-2", 0.01, 3e-3]}}, "test": "60"})
    assert settings.arm("scratch").learning_rates == (0.003, 0.01) and settings.test.cases == 60


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_settings(tmp_path / "no.yaml")
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not valid YAML"):
        read_settings(tmp_path / "b.yaml")
