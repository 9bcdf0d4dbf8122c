"""Errors of matches: centroids by hand, every pair once, honest summaries, truth of phantoms."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from support.refused import refused
from support.small_datasets import write_preprocessed

from nnunet_alice.anatomy.world import PreparedCases
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.matching.error import (
    SKIPPED,
    CentroidQuestions,
    PhantomQuestions,
    Questions,
    label_centroids,
    matching_errors,
    ordered_pairs,
    summarise,
)
from nnunet_alice.matching.interface import Matches
from nnunet_alice.phantoms import make_subject, render

SPACING = (3.0, 1.0, 2.0)


@dataclass
class ShiftMatcher:
    """Answers with the same voxel, shifted; fails for one case."""

    name: str
    shift_vox: tuple = (0, 0, 0)
    broken: str = ""
    threshold: float = 0.0

    def match(self, case_a, case_b, points_vox):
        if self.broken in (case_a, case_b):
            raise NotPreparedError(f"Case {self.broken} has no index.")
        return Matches(points_vox + np.asarray(self.shift_vox), np.full(len(points_vox), 0.9))


def segmentation(front_at, back_at=None) -> np.ndarray:
    seg = np.zeros((1, 10, 12, 14))
    for label, at in ((1, front_at), (2, back_at)):
        if at is not None:
            z, y, x = at
            seg[0, z : z + 2, y : y + 3, x : x + 1] = label
    seg[0, 0, 0, 0] = -1
    return seg


@pytest.fixture
def cases(tmp_path, monkeypatch) -> PreparedCases:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    segs = {
        "a": segmentation((2, 2, 2), (6, 6, 6)),
        "b": segmentation((3, 4, 2), (6, 6, 9)),
        "c": segmentation((2, 2, 5)),
    }
    return PreparedCases(
        write_preprocessed(tmp_path, {case: np.zeros((1, 10, 12, 14)) for case in segs}, SPACING, segs)
    )


def test_centroids_by_hand():
    centroids = label_centroids(segmentation((2, 2, 2), (6, 6, 6))[0])
    assert {label: c.tolist() for label, c in centroids.items()} == {1: [2.5, 3.0, 2.0], 2: [6.5, 7.0, 6.0]}
    assert list(label_centroids(segmentation((2, 2, 2), (6, 6, 6))[0], labels=[2, 7])) == [2]


def test_centroid_errors_against_hand_values(cases):
    pairs = ordered_pairs(["a", "b", "c"])
    matchers = [ShiftMatcher("stay"), ShiftMatcher("shifted", (1, 2, 0))]
    errors = matching_errors(matchers, pairs, CentroidQuestions(cases), SPACING)
    found = {(r.matcher, r.case_a, r.case_b, r.point): r.error_mm for r in errors.itertuples()}
    assert len(found) == len(errors) == 2 * (2 * 2 + 4)  # a <-> b: two labels; with c: label 1 only
    # front of a to b: centroids differ by (1, 2, 0) voxels of (3, 1, 2) mm
    assert found["stay", "a", "b", 1] == pytest.approx(math.hypot(3, 2))
    assert found["shifted", "a", "b", 1] == pytest.approx(0)
    assert found["stay", "b", "a", 2] == pytest.approx(6)
    assert found["shifted", "b", "a", 1] == pytest.approx(2 * math.hypot(3, 2))
    assert found["stay", "c", "a", 1] == pytest.approx(6)


def test_a_pair_that_one_matcher_cannot_work_on_is_left_out_for_all(cases, caplog):
    matchers = [ShiftMatcher("stay"), ShiftMatcher("broken", broken="c")]
    errors = matching_errors(matchers, ordered_pairs(["a", "b", "c"]), CentroidQuestions(cases), SPACING)
    assert set(errors["case_a"]) == {"a", "b"} and len(errors) == 8
    assert "Case c has no index" in caplog.text and "4 of 6 pairs" in caplog.text
    assert errors.attrs[SKIPPED] == 4
    with refused(InputError, value=2):
        matching_errors(matchers, [("a", "c"), ("c", "b")], CentroidQuestions(cases), SPACING)


def test_summary_of_hand_values_counts_missing_matches_as_wrong():
    errors = pd.DataFrame({"matcher": ["m"] * 5 + ["n"], "error_mm": [1.0, 4.0, 8.0, 15.0, np.inf, 30.0]})
    errors["score"] = [0.9, 0.8, 0.7, -np.inf, -np.inf, 0.0]
    table = summarise(errors).set_index("matcher")
    row = table.loc["m"]
    assert (row["points"], row["matched"], row["mean_mm"], row["median_mm"]) == (5, 0.6, 7.0, 8.0)
    assert row["p90_mm"] == np.inf
    assert (row["within_5_mm"], row["within_10_mm"], row["within_20_mm"]) == (0.4, 0.6, 0.8)
    assert table.loc["n", "within_20_mm"] == 0
    finite = pd.DataFrame({"matcher": "m", "error_mm": np.random.default_rng(0).random(37), "score": 1.0})
    assert summarise(finite)["p90_mm"][0] == pytest.approx(np.quantile(finite["error_mm"], 0.9))
    lost = pd.DataFrame({"matcher": "m", "error_mm": [np.inf, np.inf], "score": -np.inf})
    assert summarise(lost)["median_mm"][0] == np.inf


def test_all_ordered_pairs_come_once_and_in_tiles():
    cases = [f"c{i:02d}" for i in range(11)]
    pairs = ordered_pairs(cases)
    assert len(pairs) == len(set(pairs)) == 110
    assert all(a != b for a, b in pairs)
    # with 8 cases open at once, tiles open far fewer than one case a pair
    opened, held = 0, []
    for case in (case for pair in pairs for case in pair):
        if case not in held:
            opened += 1
            held = held[-7:]
        else:
            held.remove(case)
        held.append(case)
    assert opened < 50


def test_drawn_pairs_are_different_seeded_and_never_of_one_case():
    cases = [f"c{i}" for i in range(30)]
    pairs = ordered_pairs(cases, count=200, seed=3)
    assert len(set(pairs)) == 200 and all(a != b for a, b in pairs)
    assert pairs == ordered_pairs(cases, count=200, seed=3) != ordered_pairs(cases, count=200, seed=4)
    assert len(ordered_pairs(cases, count=10**6)) == 870
    many = [f"c{i}" for i in range(20_000)]
    assert len(ordered_pairs(many, count=50)) == 50
    with refused(InputError, value=1):
        ordered_pairs(["c1"])


def test_every_pair_is_as_likely_as_any_other():
    counts = pd.Series(
        [pair for seed in range(600) for pair in ordered_pairs("abcd", count=3, seed=seed)]
    ).value_counts()
    assert len(counts) == 12 and counts.min() > 100 and counts.max() < 200


def test_phantom_questions_know_the_truth(tmp_path, monkeypatch):
    """The true counterpart of an organ's voxel carries the same organ's label."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    subjects = {"a": make_subject(1), "b": make_subject(2, field_of_view="abdomen_pelvis")}
    phantoms = {case: render(subject, (8.0, 6.0, 6.0)) for case, subject in subjects.items()}
    geometry = {
        case: {
            "sitk_stuff": {"spacing": p.spacing_mm[::-1], "origin": p.origin_mm[::-1], "direction": np.eye(3).ravel()},
            "shape_after_cropping_and_before_resampling": p.image.shape,
            "bbox_used_for_cropping": [[0, n] for n in p.image.shape],
        }
        for case, p in phantoms.items()
    }
    dataset = write_preprocessed(
        tmp_path, {case: p.image[None] for case, p in phantoms.items()}, (8.0, 6.0, 6.0), properties=geometry
    )

    def body_points(case, count, rng):
        return rng.permutation(np.argwhere(phantoms[case].labels > 0))[:count].astype(float)

    ask = PhantomQuestions(PreparedCases(dataset), subjects, body_points, count=400)
    questions = ask("a", "b")
    assert isinstance(questions, Questions) and 50 < len(questions.points_vox) < 400
    here = phantoms["a"].labels[tuple(questions.points_vox.astype(int).T)]
    there = phantoms["b"].labels[tuple(np.rint(questions.truth_vox).astype(int).T)]
    assert (here == there).mean() > 0.7
    stay = phantoms["b"].labels[
        tuple(np.clip(questions.points_vox, 0, np.array(phantoms["b"].image.shape) - 1).astype(int).T)
    ]
    assert (here == stay).mean() < 0.4
    np.testing.assert_array_equal(ask("a", "b").points_vox, questions.points_vox)
    np.testing.assert_allclose(
        ask.truth("b", "a", ask.truth("a", "b", questions.points_vox)), questions.points_vox, atol=1e-3
    )
