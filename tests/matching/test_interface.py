"""Matchers that need no preparation, and what all matchers share."""

import pickle

import numpy as np
import pytest
from support.small_datasets import ball, write_preprocessed

from nnunet_alice.matching.interface import GeometryMatcher, RelativePositionMatcher

SPACING = (2.0, 2.0, 2.0)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    sizes = {"a": (20, 20, 20), "b": (40, 20, 30)}
    return write_preprocessed(tmp_path, {case: ball(size, SPACING, 16) for case, size in sizes.items()}, SPACING)


def test_relative_position_maps_corners_to_corners_and_middles_to_middles(dataset):
    matcher = RelativePositionMatcher(dataset)
    points = np.array([[-0.5, -0.5, -0.5], [9.5, 9.5, 9.5], [19.5, 19.5, 19.5]])
    matches = matcher.match("a", "b", points)
    np.testing.assert_allclose(matches.points_vox, [[-0.5, -0.5, -0.5], [19.5, 9.5, 14.5], [39.5, 19.5, 29.5]])
    assert matches.scores.tolist() == [-np.inf, 0.0, -np.inf]
    assert not (matches.scores >= matcher.threshold).any()  # a guess is never trusted


def test_relative_position_there_and_back_is_the_same_point(dataset):
    matcher = RelativePositionMatcher(dataset)
    points = matcher.body_points("a", 20, np.random.default_rng(0))
    there = matcher.match("a", "b", points).points_vox
    np.testing.assert_allclose(matcher.match("b", "a", there).points_vox, points, atol=1e-9)


def test_opened_cases_are_bounded_and_left_behind_when_pickled(dataset, monkeypatch):
    opened = []
    monkeypatch.setattr("nnunet_alice.matching.interface.load_geometry", lambda _, case: opened.append(case) or case)
    matcher = GeometryMatcher(dataset, ["c", "a", "b"], open_cases=2)
    assert matcher.cases == ("a", "b", "c")
    for case in "abacb":
        assert matcher.geometry(case) == case
    # a, b opened; a kept fresh; c pushes b out; b is opened again
    assert opened == ["a", "b", "c", "b"]
    copy = pickle.loads(pickle.dumps(matcher))
    copy.geometry("b")
    assert opened == ["a", "b", "c", "b", "b"]
