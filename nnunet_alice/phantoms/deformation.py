"""From a subject's millimetres to the canonical body and back: known, smooth and invertible."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_alice.errors import AliceError

CANONICAL_CENTRE_MM = np.array([200.0, 0.0, 0.0])
CONTROL_SHAPE = (7, 5, 6)
CONTROL_SPACING_MM = 90.0

#: The fixed-point iteration ends when no point moves further than this.
_TOLERANCE_MM = 1e-6
# Both warps are "identity + contraction"; with the slope of the contraction below these bounds they are one-to-one.
MAX_WARP_SLOPE = 0.55
MAX_ORGAN_SLOPE = 0.6

# Organs that grow and move on their own: centre (z, y, x) in canonical mm, radius of influence in mm.
_ORGAN_BUMPS = (
    ((190.0, -5.0, -60.0), 95.0),  # liver
    ((188.0, 45.0, 85.0), 65.0),  # spleen
    ((185.0, -20.0, 48.0), 65.0),  # stomach
    ((146.0, 40.0, -56.0), 60.0),  # right kidney
    ((158.0, 40.0, 56.0), 60.0),  # left kidney
    ((252.0, -28.0, 18.0), 80.0),  # heart
    ((32.0, -28.0, 0.0), 65.0),  # bladder
    ((100.0, -30.0, 0.0), 80.0),  # small bowel
    ((320.0, 0.0, -60.0), 80.0),  # right upper lobe
    ((320.0, 0.0, 60.0), 80.0),  # left upper lobe
)


@dataclass(frozen=True)
class Bump:
    """An organ's own change of size and place, with compact support.

    Attributes:
        centre_mm: centre (z, y, x) in canonical mm.
        radius_mm: nothing changes beyond this distance from the centre.
        growth: relative change of coordinates at the centre (positive: the organ is smaller in the subject).
        shift_mm: displacement (z, y, x) at the centre in mm.
    """

    centre_mm: tuple[float, ...]
    radius_mm: float
    growth: float
    shift_mm: tuple[float, ...]


@dataclass(frozen=True)
class Deformation:
    """Pull-back map of one subject: ``T(s) = O(M^-1 (s + u(s) - t) + centre)``.

    ``u`` is a cubic B-spline displacement on a coarse grid of control points, ``M`` and ``t`` are the global affine
    part. ``O`` lets organs grow and move on their own. Points are (..., 3) arrays of (z, y, x) in mm.

    Attributes:
        matrix: rows of M (3 x 3), canonical to subject.
        translation_mm: t, where the centre of the canonical body lies in the subject's frame (before ``u``).
        control_mm: displacements at the control points, flattened from (7, 5, 6, 3).
        control_spacing_mm: distance between control points; the grid is centred at ``control_centre_mm``.
        control_centre_mm: centre of the control grid in the subject's frame.
        bumps: changes of single organs.
    """

    matrix: tuple[tuple[float, ...], ...]
    translation_mm: tuple[float, ...]
    control_mm: tuple[float, ...]
    control_spacing_mm: float
    control_centre_mm: tuple[float, ...]
    bumps: tuple[Bump, ...]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Deformation":
        """Rebuild from ``dataclasses.asdict`` after a trip through JSON (where tuples become lists)."""
        bumps = tuple(
            Bump(tuple(b["centre_mm"]), b["radius_mm"], b["growth"], tuple(b["shift_mm"])) for b in content["bumps"]
        )
        return cls(
            matrix=tuple(tuple(row) for row in content["matrix"]),
            translation_mm=tuple(content["translation_mm"]),
            control_mm=tuple(content["control_mm"]),
            control_spacing_mm=content["control_spacing_mm"],
            control_centre_mm=tuple(content["control_centre_mm"]),
            bumps=bumps,
        )

    def to_canonical(self, points_mm: np.ndarray) -> np.ndarray:
        """Return canonical coordinates of points of the subject: (..., 3) points (z, y, x) in canonical mm, float64.

        Args:
            points_mm: (..., 3) points (z, y, x) in the subject's mm.
        """
        points = np.asarray(points_mm, dtype=np.float64)
        flat = points.reshape(-1, 3)
        affine = (flat + self._displacement(flat) - self.translation_mm) @ np.linalg.inv(self.matrix).T
        canonical = affine + CANONICAL_CENTRE_MM
        return (canonical + self._organ_displacement(canonical.T).T).reshape(points.shape)

    def to_canonical_grid(self, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """Return the same map on a whole grid, many times faster because the spline is separable along its axes.

        Args:
            axes_mm: the subject's coordinates along z, y and x.

        Returns:
            (3, n_z * n_y * n_x) canonical mm, float32.
        """
        bases = [self._basis(axis, d).astype(np.float32) for d, axis in enumerate(axes_mm)]
        control = np.asarray(self.control_mm, dtype=np.float32).reshape(*CONTROL_SHAPE, 3)
        moved = np.einsum("zi,ijkd->dzjk", bases[0], control)
        moved = np.einsum("yj,dzjk->dzyk", bases[1], moved)
        moved = np.ascontiguousarray(moved @ bases[2].T)
        for d, axis in enumerate(axes_mm):
            shape = [1, 1, 1]
            shape[d] = -1
            moved[d] += (axis - self.translation_mm[d]).astype(np.float32).reshape(shape)
        canonical = np.linalg.inv(self.matrix).astype(np.float32) @ moved.reshape(3, -1)
        canonical += CANONICAL_CENTRE_MM.astype(np.float32)[:, None]
        canonical += self._organ_displacement(canonical)
        return canonical

    def from_canonical(self, points_mm: np.ndarray) -> np.ndarray:
        """Return where canonical points lie in the subject: the inverse of :meth:`to_canonical`.

        Args:
            points_mm: (..., 3) points (z, y, x) in canonical mm.

        Returns:
            (..., 3) points (z, y, x) in the subject's mm, float64.

        Raises:
            AliceError: the map is not invertible (parameters that were not made by :func:`random_deformation`).
        """
        points = np.asarray(points_mm, dtype=np.float64)
        flat = points.reshape(-1, 3)
        affine = _fixed_point(flat, lambda p: self._organ_displacement(p.T).T)
        target = (affine - CANONICAL_CENTRE_MM) @ np.asarray(self.matrix).T + self.translation_mm
        return _fixed_point(target, self._displacement).reshape(points.shape)

    def _basis(self, coordinates_mm: np.ndarray, axis: int) -> np.ndarray:
        """Return cubic B-spline weights (N, control points along the axis); zero far outside the control grid."""
        count = CONTROL_SHAPE[axis]
        first = self.control_centre_mm[axis] - (count - 1) / 2 * self.control_spacing_mm
        return _spline((coordinates_mm[:, None] - first) / self.control_spacing_mm - np.arange(count))

    def _displacement(self, points_mm: np.ndarray) -> np.ndarray:
        """Return u at (N, 3) points of the subject, in mm."""
        control = np.asarray(self.control_mm).reshape(*CONTROL_SHAPE, 3)
        bases = [self._basis(points_mm[:, d], d) for d in range(3)]
        moved = np.tensordot(bases[0], control, axes=(1, 0))
        moved = np.einsum("nj,njkd->nkd", bases[1], moved)
        return np.einsum("nk,nkd->nd", bases[2], moved)

    def _organ_displacement(self, points_mm: np.ndarray) -> np.ndarray:
        """Return O(c) - c at (3, N) canonical points: weight (1 - r^2 / R^2)^3 times growth and shift."""
        moved = np.zeros_like(points_mm)
        for bump in self.bumps:
            offset = [points_mm[d] - points_mm.dtype.type(bump.centre_mm[d]) for d in range(3)]
            squared = (offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2) * (1 / bump.radius_mm**2)
            near = np.flatnonzero(squared < 1)
            weight = (1 - squared[near]) ** 3
            for d in range(3):
                moved[d, near] += weight * (bump.growth * offset[d][near] + bump.shift_mm[d])
        return moved


def random_deformation(rng: np.random.Generator, size_scale: float = 1.0) -> Deformation:
    """Draw a subject's deformation: size, aspect, pose, a low-frequency warp, and single organs.

    The warps are scaled down, where needed, to slopes that leave them one-to-one.

    Args:
        rng: source of randomness.
        size_scale: factor on all lengths of the subject.
    """
    size = np.exp(rng.normal(0, 0.06)) * np.exp(rng.normal(0, 0.05, 3)) * size_scale
    matrix = _rotation(np.deg2rad(np.clip(rng.normal(0, 2.5, 3), -6, 6))) @ np.diag(size)
    control = rng.normal(0, 18.0, (*CONTROL_SHAPE, 3))
    control *= min(1.0, MAX_WARP_SLOPE / _largest_slope(control)) * size_scale
    return Deformation(
        matrix=tuple(tuple(row) for row in matrix.round(6).tolist()),
        translation_mm=_rounded(CANONICAL_CENTRE_MM * size_scale + rng.normal(0, 8, 3)),
        control_mm=_rounded(control.ravel()),
        control_spacing_mm=CONTROL_SPACING_MM * size_scale,
        control_centre_mm=_rounded(CANONICAL_CENTRE_MM * size_scale),
        bumps=_random_bumps(rng),
    )


def _largest_slope(control_mm: np.ndarray) -> float:
    """Return the largest spectral norm of the gradient of a warp, over three samples per control spacing and axis.

    Args:
        control_mm: (7, 5, 6, 3) displacements at control points ``CONTROL_SPACING_MM`` apart.
    """
    gradient = np.empty((*(3 * n - 2 for n in CONTROL_SHAPE), 3, 3))
    for axis in range(3):
        moved = control_mm
        for d, count in enumerate(CONTROL_SHAPE):
            distance = np.linspace(0, count - 1, 3 * count - 2)[:, None] - np.arange(count)
            weights = _spline(distance)
            if d == axis:
                weights = (_spline(distance + 1e-4) - _spline(distance - 1e-4)) / (2e-4 * CONTROL_SPACING_MM)
            moved = np.moveaxis(np.tensordot(weights, moved, axes=(1, d)), 0, d)
        gradient[..., axis] = moved
    return float(np.linalg.norm(gradient, ord=2, axis=(-2, -1)).max())


def _spline(distance: np.ndarray) -> np.ndarray:
    """Return the uniform cubic B-spline at distances in control spacings."""
    distance = np.abs(distance)
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, inner, outer)


def _random_bumps(rng: np.random.Generator) -> tuple[Bump, ...]:
    """Draw growth and shift of each organ, scaled so that overlapping bumps stay contractions."""
    growths = np.clip(rng.normal(0, 0.10, len(_ORGAN_BUMPS)), -0.22, 0.22)
    shifts = np.clip(rng.normal(0, 4.0, (len(_ORGAN_BUMPS), 3)), -9, 9)
    centres = np.array([centre for centre, _ in _ORGAN_BUMPS])
    radii = np.array([radius for _, radius in _ORGAN_BUMPS])
    # The gradient of (1 - r^2/R^2)^3 is at most 1.72 / R; that of r times it lies within [-0.66, 1].
    slopes = np.abs(growths) + 1.72 * np.linalg.norm(shifts, axis=1) / radii
    overlapping = np.linalg.norm(centres[:, None] - centres, axis=-1) < radii[:, None] + radii
    factor = min(1.0, MAX_ORGAN_SLOPE / (overlapping @ slopes).max())
    return tuple(
        Bump(centre, radius, round(float(growth * factor), 6), _rounded(shift * factor))
        for (centre, radius), growth, shift in zip(_ORGAN_BUMPS, growths, shifts, strict=True)
    )


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation matrix from angles in radians about the z, y and x axis, in (z, y, x) coordinates."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (d for d in range(3) if d != axis)
        single = np.eye(3)
        single[first, first] = single[second, second] = np.cos(angle)
        single[first, second], single[second, first] = -np.sin(angle), np.sin(angle)
        result = result @ single
    return result


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Round to micrometres, which keep truth files short."""
    return tuple(np.round(values, 3).tolist())


def _fixed_point(target: np.ndarray, displacement: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Solve ``p + displacement(p) = target`` for p; converges because the displacement is a contraction."""
    points = target
    for _ in range(200):
        following = target - displacement(points)
        moved = np.abs(following - points).max(initial=0.0)
        points = following
        if moved <= _TOLERANCE_MM:
            return points
    raise AliceError("The phantom's deformation cannot be inverted; draw a new subject with make_subject.")
