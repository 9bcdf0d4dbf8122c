"""Building blocks of the body: signed distances in mm (negative inside), tubes, vessel trees, smooth noise."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator, make_interp_spline
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

_NOISE_CELLS = 32
#: Distance of the balls that a tube is made of.
_STEP_MM = 1.5


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, tilted in the coronal plane (z, x) and in the sagittal plane (z, y).

    Attributes:
        centre_mm: (z, y, x) of its centre.
        radii_mm: half axes along its own z, y, x.
        tilt_coronal, tilt_sagittal: angles in degrees; positive leans the top towards larger x or y.
    """

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    tilt_coronal: float = 0.0
    tilt_sagittal: float = 0.0

    def distance(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance to the surface, exact to first order near it."""
        z, y, x = z - self.centre_mm[0], y - self.centre_mm[1], x - self.centre_mm[2]
        if self.tilt_coronal:
            c, s = np.cos(np.deg2rad(self.tilt_coronal)), np.sin(np.deg2rad(self.tilt_coronal))
            z, x = c * z + s * x, c * x - s * z
        if self.tilt_sagittal:
            c, s = np.cos(np.deg2rad(self.tilt_sagittal)), np.sin(np.deg2rad(self.tilt_sagittal))
            z, y = c * z + s * y, c * y - s * z
        scaled = [p / r for p, r in zip((z, y, x), self.radii_mm, strict=True)]
        level = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
        steep = np.sqrt(sum((p / r) ** 2 for p, r in zip(scaled, self.radii_mm, strict=True)))
        return level * (level - 1) / np.maximum(steep, 1e-4)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners that hold the ellipsoid however it is tilted."""
        reach = max(self.radii_mm) if self.tilt_coronal or self.tilt_sagittal else np.array(self.radii_mm)
        return np.array(self.centre_mm) - reach, np.array(self.centre_mm) + reach


class Tube:
    """A bundle of tubes: many centre points with a radius each, searched by a k-d tree."""

    def __init__(self, centres_mm: np.ndarray, radii_mm: np.ndarray):
        self.centres_mm, self.radii_mm = centres_mm, radii_mm
        self._tree = cKDTree(centres_mm)
        self._reach = float(radii_mm.max())

    @classmethod
    def through(cls, knots_mm, radii_mm) -> "Tube":
        """A smooth tube through (z, y, x) knots; the radius is given at the knots or once for all."""
        knots = np.asarray(knots_mm, dtype=float)
        radii = np.broadcast_to(np.asarray(radii_mm, dtype=float), (len(knots),))
        lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
        at = np.arange(0, lengths[-1] + _STEP_MM, _STEP_MM).clip(max=lengths[-1])
        spline = make_interp_spline(lengths, knots, k=min(3, len(knots) - 1))
        return cls(spline(at), np.interp(at, lengths, radii))

    @classmethod
    def joined(cls, tubes: "list[Tube]") -> "Tube":
        """Several tubes as one."""
        return cls(np.concatenate([t.centres_mm for t in tubes]), np.concatenate([t.radii_mm for t in tubes]))

    def distance(self, z: np.ndarray, y: np.ndarray, x: np.ndarray, margin_mm: float = 4.0) -> np.ndarray:
        """Signed distance to the wall of the nearest tube; ``margin_mm`` where it is further than that."""
        low, high = self.box()
        near = np.ones(len(z), dtype=bool)
        for axis, p in enumerate((z, y, x)):
            near &= (p > low[axis] - margin_mm) & (p < high[axis] + margin_mm)
        result = np.full(len(z), margin_mm, dtype=np.float32)
        near = np.flatnonzero(near)
        points = np.stack([z[near], y[near], x[near]], axis=-1)
        distance, nearest = self._tree.query(points, distance_upper_bound=self._reach + margin_mm)
        found = np.isfinite(distance)
        result[near[found]] = distance[found] - self.radii_mm[nearest[found]]
        return result

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners that hold all tubes."""
        return self.centres_mm.min(axis=0) - self._reach, self.centres_mm.max(axis=0) + self._reach


def grow_tree(root_mm: np.ndarray, targets_mm: np.ndarray, twig_mm: float, trunk_mm: float) -> Tube:
    """A branching vessel from a root that reaches all targets; radii follow Murray's law (cubes add up).

    Args:
        root_mm: (3,) where the vessel enters the organ.
        targets_mm: (N, 3) ends of the twigs.
        twig_mm: radius of a twig.
        trunk_mm: largest radius.
    """
    nodes, parents, ends = [np.asarray(root_mm, dtype=float)], [-1], []
    for target in targets_mm[np.argsort(np.linalg.norm(targets_mm - root_mm, axis=1))]:
        start = int(np.argmin(np.linalg.norm(np.array(nodes) - target, axis=1)))
        steps = max(1, int(np.linalg.norm(nodes[start] - target) / 1.5))
        for fraction in np.arange(1, steps + 1) / steps:
            parents.append(start if fraction * steps < 1.5 else len(nodes) - 1)
            nodes.append(nodes[start] + fraction * (target - nodes[start]))
        ends.append(len(nodes) - 1)
    carried = np.zeros(len(nodes))
    carried[ends] = 1
    for node in range(len(nodes) - 1, 0, -1):  # a parent always comes before its children
        carried[parents[node]] += carried[node]
    return Tube(np.array(nodes), np.minimum(twig_mm * np.cbrt(carried), trunk_mm))


class Profile:
    """Monotone-cubic curve over z, tabulated every mm (constant beyond its ends)."""

    def __init__(self, heights_mm, values):
        self._heights = np.arange(heights_mm[0], heights_mm[-1] + 1.0)
        self._values = PchipInterpolator(heights_mm, values)(self._heights)

    def __call__(self, z: np.ndarray) -> np.ndarray:
        return np.interp(z, self._heights, self._values).astype(np.float32)


class SmoothNoise:
    """A periodic random field with zero mean and unit variance that varies over about two cells."""

    def __init__(self, rng: np.random.Generator):
        field = gaussian_filter(rng.standard_normal((_NOISE_CELLS,) * 3), 0.8, mode="wrap")
        self._field = ((field - field.mean()) / field.std()).astype(np.float32)

    def __call__(self, points_mm: np.ndarray, cell_mm: float, offset=(0.0, 0.0, 0.0)) -> np.ndarray:
        """Values at (3, N) points; a cell of the field is ``cell_mm`` wide, ``offset`` is in cells."""
        cells = points_mm / np.float32(cell_mm) + np.asarray(offset, dtype=np.float32)[:, None]
        return map_coordinates(self._field, cells, order=1, mode="grid-wrap")
