"""Peaks of fitted quadratic surfaces: exact for quadratics, better than three samples an axis under noise."""

import numpy as np

from nnunet_alice.matching.refinement import REACH, neighbour_offsets, quadratic_peaks

OFFSETS = neighbour_offsets()
MIDDLE = int(np.flatnonzero((OFFSETS == 0).all(axis=1))[0])
#: a tilted ellipsoid: axes mix
SHAPE = np.array([[0.05, 0.02, 0.0], [0.02, 0.08, -0.01], [0.0, -0.01, 0.04]])


def bowl(peaks: np.ndarray) -> np.ndarray:
    """(Q, K) values of 0.9 - d' SHAPE d around each peak, at all neighbours."""
    away = OFFSETS[None] - peaks[:, None]
    return 0.9 - np.einsum("qki,ij,qkj->qk", away, SHAPE, away)


def test_neighbours_of_one_step_are_a_cube_with_the_point_in_its_middle():
    assert OFFSETS.shape == (27, 3) and len(np.unique(OFFSETS, axis=0)) == 27
    np.testing.assert_array_equal(OFFSETS[13], 0)
    assert neighbour_offsets(2).shape == (125, 3)


def test_the_peak_of_a_quadratic_is_found_exactly_also_with_neighbours_missing():
    peaks = np.random.default_rng(0).uniform(-0.45, 0.45, (50, 3))
    values = bowl(peaks)
    present = np.ones_like(values, dtype=bool)
    np.testing.assert_allclose(quadratic_peaks(values, present, OFFSETS), peaks, atol=1e-3)
    corners = np.abs(OFFSETS).sum(axis=1) == 3
    present[:, corners] = False
    values[:, corners] = np.nan  # whatever is there must not matter
    np.testing.assert_allclose(quadratic_peaks(values, present, OFFSETS), peaks, atol=1e-3)


def test_a_peak_never_leaves_the_cell_and_flat_or_lonely_points_stay():
    far = quadratic_peaks(bowl(np.full((1, 3), 3.0)), np.ones((1, 27), dtype=bool), OFFSETS)
    np.testing.assert_allclose(far, REACH)
    flat = quadratic_peaks(np.ones((1, 27)), np.ones((1, 27), dtype=bool), OFFSETS)
    np.testing.assert_array_equal(flat, 0)
    alone = np.zeros((1, 27), dtype=bool)
    alone[0, MIDDLE] = True
    np.testing.assert_array_equal(quadratic_peaks(np.full((1, 27), 0.8), alone, OFFSETS), 0)
    upside_down = quadratic_peaks(-bowl(np.full((1, 3), 0.2)), np.ones((1, 27), dtype=bool), OFFSETS)
    np.testing.assert_array_equal(upside_down, 0)


def test_noise_hurts_less_than_with_a_parabola_along_each_axis():
    rng = np.random.default_rng(1)
    peaks = rng.uniform(-0.4, 0.4, (2000, 3))
    values = bowl(peaks) + rng.normal(0, 0.02, (2000, 27))
    fitted = quadratic_peaks(values, np.ones_like(values, dtype=bool), OFFSETS)
    axis_wise = np.empty_like(peaks)
    for axis in range(3):
        before, behind = ((side * np.eye(3)[axis] == OFFSETS).all(axis=1).argmax() for side in (-1, 1))
        curvature = 2 * values[:, MIDDLE] - values[:, before] - values[:, behind]
        axis_wise[:, axis] = np.clip((values[:, behind] - values[:, before]) / (2 * curvature), -REACH, REACH)
    errors = [np.median(np.linalg.norm(found - peaks, axis=1)) for found in (fitted, axis_wise)]
    assert errors[0] < 0.8 * errors[1]
