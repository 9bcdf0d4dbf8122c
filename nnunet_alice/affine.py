"""One affine map of space: points through it and back, its inverse, and two of them one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_alice.errors import InputError


@dataclass(frozen=True, eq=False)
class Affine:
    """A map of points in space. numpy takes it for its matrix.

    Attributes:
        matrix: (4, 4) float64, homogeneous, last row 0 0 0 1.
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", np.asarray(self.matrix, dtype=np.float64))

    @classmethod
    def scaling(cls, scale: Sequence[float] | np.ndarray, shift: Sequence[float] | np.ndarray = (0, 0, 0)) -> "Affine":
        """Return the map that scales along the axes, then shifts."""
        matrix = np.diag([*np.asarray(scale, dtype=np.float64), 1.0])
        matrix[:3, 3] = shift
        return cls(matrix)

    @classmethod
    def of_parts(cls, linear: np.ndarray, shift: Sequence[float] | np.ndarray) -> "Affine":
        """Return the map that applies ``linear`` (3, 3), then shifts."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = linear, shift
        return cls(matrix)

    @property
    def linear(self) -> np.ndarray:
        """Its linear part, (3, 3)."""
        return self.matrix[:3, :3]

    @property
    def shift(self) -> np.ndarray:
        """Where it takes the origin, (3,)."""
        return self.matrix[:3, 3]

    def points(self, points: np.ndarray | Sequence[float]) -> np.ndarray:
        """Map points (..., 3)."""
        return np.asarray(points, dtype=np.float64) @ self.linear.T + self.shift

    def points_back(self, points: np.ndarray) -> np.ndarray:
        """Map points (N, 3) by the inverse."""
        return np.linalg.solve(self.linear, (np.asarray(points, dtype=np.float64) - self.shift).T).T

    def inverse(self) -> "Affine":
        """Return the inverse.

        Raises:
            InputError: it is not finite, not 4 x 4, its last row is not (0, 0, 0, 1), or it has no inverse.
        """
        matrix = self.matrix
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
            raise InputError(f"An affine must be 4 x 4 and finite with last row 0 0 0 1, got {matrix.tolist()}.").about(
                value=matrix.tolist()
            )
        if abs(np.linalg.det(self.linear)) < 1e-9:
            raise InputError("An affine that flattens space cannot be inverted; register the case again.")
        return Affine(np.linalg.inv(matrix))

    def __matmul__(self, first: "Affine | np.ndarray") -> "Affine":
        """Return the map that applies ``first``, then this one."""
        return Affine(self.matrix @ np.asarray(first))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Return the matrix, for numpy."""
        return np.array(self.matrix, dtype=dtype) if copy else np.asarray(self.matrix, dtype=dtype)
