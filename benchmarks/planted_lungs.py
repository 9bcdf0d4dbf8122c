"""Disease planted in real lungs, of a known kind and extent; the rest of the scan stays as it was.

Three kinds of emphysema differ in where the dark voxels lie, not in how dark they are nor how many: centrilobular in
small spots away from the pleura, panlobular in lumps of the size of lobules, paraseptal along the pleura.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

KINDS = ("centrilobular", "paraseptal", "panlobular")
#: Values of the label images: lung without disease, the kinds of emphysema, consolidation.
HEALTHY, FIRST_KIND, CONSOLIDATION = 1, 2, 5
#: Deviation of the noise whose peaks are the spots, and of the one whose peaks are the regions that hold them.
_SPOT_MM = {"centrilobular": 2.8, "paraseptal": 4.0, "panlobular": 7.0}
_REGION_MM = 25.0
#: Share of a diseased region that is destroyed; depth of the band along the pleura.
_DENSE, _RIM_MM = 0.5, 10.0
#: What destroyed lung comes near to, and what fills a lung, HU.
_DESTROYED_HU, _FILLED_HU = -960.0, 40.0


@dataclass(frozen=True)
class Planted:
    """A diseased scan.

    Attributes:
        image: (z, y, x) int16, HU.
        labels: (z, y, x) uint8, see the module's constants; 0 outside of the lungs.
        emphysema: share of the lungs that is destroyed.
        consolidation: share of the lungs that is filled.
    """

    image: np.ndarray
    labels: np.ndarray
    emphysema: float
    consolidation: float


def plant(
    image: np.ndarray,
    lungs: np.ndarray,
    spacing_mm: np.ndarray,
    kind: str,
    extent: float,
    radii_mm: tuple[float, ...],
    rng: np.random.Generator,
) -> Planted:
    """Plant emphysema of a kind, and consolidations.

    Noise and vessels stay: only the local mean of the lung changes.

    Args:
        image: (z, y, x) CT, HU.
        lungs: (z, y, x) bool.
        spacing_mm: (3,).
        kind: one of `KINDS`.
        extent: share of the lungs to destroy, about.
        radii_mm: of the consolidations.
        rng: of everything that is drawn.
    """
    values = image.astype(np.float32)
    inside = ndimage.gaussian_filter(lungs.astype(np.float32), 1.5)
    local = ndimage.gaussian_filter(values * lungs, 1.5) / np.maximum(inside, 1e-3)

    depth_mm = ndimage.distance_transform_edt(lungs, spacing_mm)
    rim = depth_mm <= _RIM_MM
    where = lungs & (rim if kind == "paraseptal" else ~rim if kind == "centrilobular" else True)
    destroyed = _peaks(where, spacing_mm, _SPOT_MM[kind], extent * lungs.sum(), rng)
    depth = rng.uniform(0.6, 0.9) * ndimage.gaussian_filter(destroyed.astype(np.float32), 0.5)
    values += lungs * depth * (_DESTROYED_HU - local)

    filled = _balls(lungs, spacing_mm, radii_mm, rng)
    values += lungs * ndimage.gaussian_filter(filled.astype(np.float32), 0.7) * (_FILLED_HU - local)
    labels = lungs.astype(np.uint8) * HEALTHY
    labels[destroyed] = FIRST_KIND + KINDS.index(kind)
    labels[filled] = CONSOLIDATION
    planted = np.clip(np.round(values), -1024, 3071).astype(np.int16)
    return Planted(planted, labels, float((destroyed & ~filled).sum() / lungs.sum()), float(filled.sum() / lungs.sum()))


def _peaks(where: np.ndarray, spacing_mm: np.ndarray, spot_mm: float, count: float, rng) -> np.ndarray:
    """Draw about ``count`` voxels: peaks of fine noise within peaks of coarse noise."""
    region = _highest(where, _noise(where.shape, spacing_mm, _REGION_MM, rng), count / _DENSE)
    return _highest(region, _noise(where.shape, spacing_mm, spot_mm, rng), count)


def _noise(shape: tuple[int, ...], spacing_mm: np.ndarray, width_mm: float, rng: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width_mm / spacing_mm)


def _highest(where: np.ndarray, values: np.ndarray, count: float) -> np.ndarray:
    """Return the ``count`` voxels of a region with the highest values."""
    share = min(1.0, count / max(1, where.sum()))
    return where & (values >= np.quantile(values[where], 1 - share))


def _balls(lungs: np.ndarray, spacing_mm: np.ndarray, radii_mm: tuple[float, ...], rng) -> np.ndarray:
    """Return balls with uneven surfaces, centred in the lungs."""
    filled = np.zeros_like(lungs)
    grid = np.stack(np.meshgrid(*map(np.arange, lungs.shape), indexing="ij"), axis=-1) * spacing_mm
    for radius in radii_mm:
        centre = rng.permutation(np.argwhere(lungs))[0] * spacing_mm
        uneven = _noise(lungs.shape, spacing_mm, 5.0, rng)
        distance = np.linalg.norm(grid - centre, axis=-1) + 0.2 * radius * uneven / uneven.std()
        filled |= lungs & (distance <= radius)
    return filled
