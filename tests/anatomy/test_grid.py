"""Body grids: within budget, isotropic in mm, all in the body, and right about corners and neighbours."""

import math
from functools import partial

import numpy as np
import pytest
from scipy.spatial import KDTree
from support.small_datasets import geometry_of

from nnunet_alice.anatomy.grid import body_grid

geometry = partial(geometry_of, factors=(1, 2, 2), spacing=(5.0, 1.0, 0.8))


def ellipsoid(shape) -> np.ndarray:
    axes = [np.linspace(-1, 1, n) for n in shape]
    return np.sum([g**2 for g in np.meshgrid(*axes, indexing="ij")], axis=0) < 0.8


def test_grid_uses_the_budget_and_lies_in_the_body():
    case = geometry(ellipsoid((30, 60, 60)), shape=(30, 119, 120))
    grid = body_grid(case, 3000)
    assert 2400 < len(grid.cells) <= 3000
    step_mm = np.asarray(grid.step_vox) * case.spacing
    np.testing.assert_allclose(step_mm, step_mm[0])
    # every body point has a grid point within half a step on each axis, and no grid point is farther from the body
    points = np.concatenate([case.body_points(5000, np.random.default_rng(0)), np.argwhere(case.body)[::7] * (1, 2, 2)])
    away = (points - grid.origin_vox) / np.asarray(grid.step_vox)
    cells = {tuple(cell) for cell in grid.cells.tolist()}
    assert {tuple(cell) for cell in np.clip(np.rint(away), 0, np.asarray(grid.shape) - 1).astype(int).tolist()} <= cells
    body_mm = np.argwhere(case.body) * (1, 2, 2) * case.spacing
    distance = KDTree(body_mm).query(grid.points_vox * case.spacing)[0]
    assert distance.max() < math.sqrt(3) / 2 * step_mm[0] + 2


def test_grid_is_never_finer_than_voxels_or_the_given_step():
    case = geometry(np.ones((6, 10, 10), dtype=bool))
    np.testing.assert_allclose(body_grid(case, 10**6).step_vox, [1, 1, 1])
    np.testing.assert_allclose(body_grid(case, 10**6, finest_mm=4).step_vox, [1, 4, 5])


def test_a_body_of_one_voxel_has_a_point():
    body = np.zeros((40, 40, 40), dtype=bool)
    body[0, 0, 0] = True
    grid = body_grid(geometry(body, spacing=(1, 1, 1), factors=(1, 1, 1)), 10, finest_mm=17)
    assert len(grid.cells) == 1


def test_corners_and_weights_against_a_loop():
    grid = body_grid(geometry(ellipsoid((12, 20, 20))), 500)
    rng = np.random.default_rng(0)
    points = rng.uniform(-3, 42, size=(300, 3)) * (12 / 40, 1, 1)
    rows, weights = grid.corners(points)
    cells = {tuple(cell): row for row, cell in enumerate(grid.cells.tolist())}
    some_missing = 0
    for point, found, weight in zip(points, rows, weights, strict=True):
        index = (point - grid.origin_vox) / np.asarray(grid.step_vox)
        expected = {}
        for corner in np.ndindex(2, 2, 2):
            cell = tuple((np.floor(index).astype(int) + corner).tolist())
            if cell in cells:
                share = np.prod([1 - abs(i - c) for i, c in zip(index, cell, strict=True)])
                expected[cells[cell]] = share
        total = sum(expected.values())
        some_missing += 0 < len(expected) < 8
        got = {int(r): w for r, w in zip(found, weight, strict=True) if r >= 0}
        assert got.keys() == expected.keys()
        for row, share in expected.items():
            assert got[row] == pytest.approx(share / total)
        assert weight.sum() == pytest.approx(1 if expected else 0)
    assert some_missing > 10


def test_any_neighbours_against_a_loop():
    grid = body_grid(geometry(ellipsoid((12, 20, 20))), 500)
    offsets = np.array([[0, 0, 0], [1, 0, 0], [-1, 1, 0], [2, -2, 1], [0, 0, 9], [-40, 0, 0]])
    rows = np.arange(0, len(grid.cells), 7)
    found = grid.neighbours(rows, offsets)
    place = {tuple(cell): row for row, cell in enumerate(grid.cells.tolist())}
    expected = [[place.get(tuple((grid.cells[row] + offset).tolist()), -1) for offset in offsets] for row in rows]
    np.testing.assert_array_equal(found, expected)
    assert (found[:, 0] == rows).all() and (found[:, -1] == -1).all() and (found[:, 3] >= 0).any()
