"""Neighbours correct a match: exact for affine maps, robust to a wrong answer, silent where there is none."""

import numpy as np

from nnunet_alice.matching.consensus import agreed_matches
from nnunet_alice.matching.interface import Matches

SPACING = np.array([5.0, 1.0, 2.0])
POINTS = np.random.default_rng(0).uniform(10, 40, (200, 3))


def shifted(points: np.ndarray) -> np.ndarray:
    """Truth: a small shift and scale, the same for all."""
    return 1.05 * points + [2.0, -7.0, 3.0]


def error_mm(matches: Matches) -> np.ndarray:
    return np.linalg.norm((matches.points_vox - shifted(POINTS)) * SPACING, axis=1)


def test_a_smooth_map_is_left_as_it_is_and_scores_are_the_points_own():
    def match(points):
        return Matches(shifted(points), points[:, 0] / 100)

    matches = agreed_matches(match, POINTS, 6.0, SPACING)
    np.testing.assert_allclose((matches.points_vox - shifted(POINTS)) * SPACING, 0, atol=0.05)
    np.testing.assert_allclose(matches.scores, POINTS[:, 0] / 100)


def test_independent_errors_become_smaller_and_a_wild_answer_hardly_counts():
    rng = np.random.default_rng(1)

    def noisy(points):
        return Matches(shifted(points) + rng.normal(0, 3.0, points.shape) / SPACING, np.ones(len(points)))

    def wild(points):
        found = shifted(points)
        found[::7] += 300 / SPACING  # the points' own matches: first of each seven
        return Matches(found, np.ones(len(points)))

    single = np.linalg.norm((noisy(POINTS).points_vox - shifted(POINTS)) * SPACING, axis=1)
    agreed = np.linalg.norm(
        (agreed_matches(noisy, POINTS, 6.0, SPACING).points_vox - shifted(POINTS)) * SPACING, axis=1
    )
    assert np.median(agreed) < 0.6 * np.median(single)
    corrected = agreed_matches(wild, POINTS, 6.0, SPACING).points_vox
    assert np.linalg.norm((corrected - shifted(POINTS)) * SPACING, axis=1).max() < 3.0


def test_missing_neighbours_are_left_out_and_a_point_without_a_match_keeps_none():
    def match(points):
        found, scores = shifted(points), np.ones(len(points))
        lost = points[:, 1] > 30
        found[lost], scores[lost] = np.nan, -np.inf
        return Matches(found, scores)

    matches = agreed_matches(match, POINTS, 6.0, SPACING)
    lost = POINTS[:, 1] > 30
    assert lost.any() and np.isnan(matches.points_vox[lost]).all() and (matches.scores[lost] == -np.inf).all()
    np.testing.assert_allclose((matches.points_vox - shifted(POINTS))[~lost] * SPACING, 0, atol=0.3)
    assert agreed_matches(match, np.empty((0, 3)), 6.0, SPACING).points_vox.shape == (0, 3)
