"""Affine maps against points written out."""

import numpy as np
import pytest

from nnunet_alice.affine import Affine
from nnunet_alice.errors import InputError

MATRIX = np.array([[2.0, 0.5, 0.0, 1.0], [0.0, -1.0, 0.25, 2.0], [0.1, 0.0, 3.0, -4.0], [0.0, 0.0, 0.0, 1.0]])
POINTS = np.random.default_rng(0).normal(size=(20, 3))


def homogeneous(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.array([(matrix @ [*point, 1.0])[:3] for point in points])


def test_points_go_as_homogeneous_coordinates_say_and_come_back():
    affine = Affine(MATRIX)
    np.testing.assert_allclose(affine.points(POINTS), homogeneous(MATRIX, POINTS))
    np.testing.assert_allclose(affine.points_back(affine.points(POINTS)), POINTS)
    np.testing.assert_allclose(affine.inverse().points(affine.points(POINTS)), POINTS)


def test_one_after_the_other():
    first = Affine.of_parts(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), (1, 2, 3))
    np.testing.assert_allclose((Affine(MATRIX) @ first).points(POINTS), Affine(MATRIX).points(first.points(POINTS)))
    np.testing.assert_allclose((Affine(MATRIX) @ first.matrix).matrix, MATRIX @ first.matrix)


def test_scaling_and_what_numpy_sees():
    affine = Affine.scaling((1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(affine.points(np.ones((1, 3))), [[5, 7, 9]])
    np.testing.assert_array_equal(np.asarray(affine), affine.matrix)
    np.testing.assert_array_equal(affine.shift, (4, 5, 6))
    np.testing.assert_allclose(np.linalg.solve(affine, affine), np.eye(4), atol=1e-12)


@pytest.mark.parametrize("bad", [np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan), np.eye(3), 2 * np.eye(4)])
def test_what_has_no_inverse_is_refused(bad):
    with pytest.raises(InputError):
        Affine(bad).inverse()
