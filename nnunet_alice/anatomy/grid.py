"""A regular grid of points in a body: how fine it may be for a given number of points, and who neighbours whom."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.triples import triple

#: each trial step is so much longer than the one before, until the points are few enough
_STEP_GROWTH = 1.02


@dataclass(frozen=True)
class BodyGrid:
    """Grid points in the body of a case. Axes (z, y, x).

    Attributes:
        origin_vox: (3,) voxel of grid cell (0, 0, 0).
        step_vox: (3,) voxels between neighbours; about the same number of mm on all axes, never below 1.
        shape: (3,) grid cells along each axis.
        cells: (N, 3) int16, the cells that are points, in ascending C order.
    """

    origin_vox: tuple[float, float, float]
    step_vox: tuple[float, float, float]
    shape: tuple[int, int, int]
    cells: np.ndarray

    @property
    def points_vox(self) -> np.ndarray:
        """(N, 3) float64 voxels of the preprocessed array."""
        return self.cells * np.asarray(self.step_vox) + np.asarray(self.origin_vox)

    @cached_property
    def lookup(self) -> np.ndarray:
        """Row of each cell, -1 where a cell is no point: int32, ``shape + 2``, with a border of -1 all round."""
        rows = np.full(np.asarray(self.shape) + 2, -1, dtype=np.int32)
        rows[tuple(self.cells.T.astype(np.intp) + 1)] = np.arange(len(self.cells), dtype=np.int32)
        return rows

    def corners(self, points_vox: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the eight grid points around each point and their trilinear weights.

        Args:
            points_vox: (Q, 3) voxels.

        Returns:
            rows (Q, 8), -1 where a corner is no point; weights (Q, 8), made to add up to 1 over the corners that
            are points; all 0 where none is.
        """
        index = (points_vox - np.asarray(self.origin_vox)) / np.asarray(self.step_vox)
        base = np.floor(index)
        share = index - base
        base = np.clip(base, -2, np.asarray(self.shape)).astype(np.intp)
        rows, weights = np.empty((len(index), 8), dtype=np.int32), np.empty((len(index), 8))
        for column, offset in enumerate(itertools.product((0, 1), repeat=3)):
            # Anything beyond the border of -1 is no point either.
            corner = np.clip(base + offset + 1, 0, np.asarray(self.shape) + 1)
            rows[:, column] = self.lookup[tuple(corner.T)]
            weights[:, column] = np.prod(np.where(offset, share, 1 - share), axis=1)
        weights[rows < 0] = 0
        total = weights.sum(axis=1, keepdims=True)
        return rows, np.divide(weights, total, out=np.zeros_like(weights), where=total > 1e-9)

    def neighbours(self, rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return rows of the points at (K, 3) offsets in cells from ``rows`` (Q,): (Q, K), -1 for none."""
        cells = self.cells[rows].astype(np.intp)[:, None] + offsets + 1
        # Anything beyond the border of -1 is no point either.
        cells = np.clip(cells, 0, np.asarray(self.shape) + 1)
        return self.lookup[tuple(np.moveaxis(cells, 2, 0))]


def body_grid(geometry: CaseGeometry, max_points: int, finest_mm: float = 0.0) -> BodyGrid:
    """Return the finest grid that needs at most ``max_points`` points to cover the body of a case.

    Args:
        geometry: shape, spacing and body of the case.
        max_points: budget.
        finest_mm: steps are not shorter than this; nothing is gained below the stride of the descriptors.
    """
    spacing, shape = np.asarray(geometry.spacing), np.asarray(geometry.shape)
    volume_mm3 = geometry.body_cells * math.prod(geometry.grid_spacing_mm)
    step_mm = max(finest_mm, float(spacing.min()), 0.9 * (volume_mm3 / max_points) ** (1 / 3))
    while True:
        grid = _grid(geometry, spacing, shape, step_mm)
        if len(grid.cells) <= max_points:
            return grid
        step_mm *= _STEP_GROWTH


def _grid(geometry: CaseGeometry, spacing: np.ndarray, shape: np.ndarray, step_mm: float) -> BodyGrid:
    """Return all points of a grid of ``step_mm`` to which some place in the body is nearest; centred in the array.

    So every body point lies within half a step of a grid point on each axis, at the skin too.
    """
    step = np.maximum(step_mm / spacing, 1.0)
    counts = np.floor((shape - 1) / step + 1e-9).astype(int) + 1
    origin = (shape - 1 - (counts - 1) * step) / 2
    factors, body = np.asarray(geometry.factors), geometry.body
    near = [
        np.minimum(np.floor((o + np.arange(n) * s + 0.5) / f).astype(int), g - 1)
        for o, n, s, f, g in zip(origin, counts, step, factors, geometry.grid_shape, strict=True)
    ]
    chosen = body[np.ix_(*near)]
    # Grid points outside the body can be nearest to places at its surface: to the corners of the surface's cells.
    surface = np.argwhere(body & ~ndimage.binary_erosion(body))
    for corner in itertools.product((0, 1), repeat=3):
        place = np.clip((surface + corner) * factors - 0.5, 0, shape - 1)
        chosen[tuple(np.clip(np.rint((place - origin) / step).astype(int), 0, counts - 1).T)] = True
    return BodyGrid(
        triple(origin.tolist()), triple(step.tolist()), triple(counts.tolist()), np.argwhere(chosen).astype(np.int16)
    )
