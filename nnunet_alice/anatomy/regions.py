"""Regions of the atlas: supervoxels that stand for pieces of anatomy, and which of them a registered case shows where.

A registration, affine and then deformed, says where in the atlas every voxel of a case lies. With the atlas cut into
regions, that gives every voxel a label without a reader: wrong near borders, right on average over people. ``L_reg`` of
Alice learns from these labels.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.segmentation import slic

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.deformation import Deformation
from nnunet_alice.anatomy.geometry import CaseGeometry

#: Weight of distance against intensity in SLIC: regions follow strong borders and stay compact.
_COMPACTNESS = 0.1
#: Standard deviation to which intensities are brought (uint8 of the geometry divided by it).
_GREY_LEVELS = 64
_ITERATIONS = 5
#: A region has this many grid cells on average, or more.
_MIN_CELLS = 8


@dataclass(frozen=True)
class AtlasRegions:
    """Label map of the atlas on its coarse grid, axes (z, y, x).

    Attributes:
        labels: uint16; 1 to the number of regions in the body, 0 elsewhere.
        grid_spacing_mm: size of a grid cell.
        grid_origin_mm: centre of cell (0, 0, 0); voxel (0, 0, 0) of the atlas is at the origin.
    """

    labels: np.ndarray
    grid_spacing_mm: tuple[float, ...]
    grid_origin_mm: tuple[float, ...]

    def at(self, points_mm: np.ndarray, affine: np.ndarray, deformation: Deformation, case: CaseGeometry) -> np.ndarray:
        """Return the regions at points of a registered case.

        Args:
            points_mm: (..., 3) in the case, (z, y, x); may lie outside.
            affine: (4, 4), mm of the case -> mm of the atlas.
            deformation: what the affine map leaves over.
            case: geometry of the case.

        Returns:
            int64 (...); 0 outside of the case's body and outside of the atlas's.
        """
        atlas_mm = Affine(affine).points(deformation.at(points_mm))
        cells = (atlas_mm - self.grid_origin_mm) / self.grid_spacing_mm
        found = ndimage.map_coordinates(self.labels, np.moveaxis(cells, -1, 0), order=0)
        inside = case.in_body((points_mm / case.spacing).reshape(-1, 3), tolerance_cells=0)
        return np.where(inside.reshape(found.shape), found, 0).astype(np.int64)


def lay_regions(atlas: CaseGeometry, count: int) -> AtlasRegions:
    """Cut the body of the atlas into at most ``count`` supervoxels (SLIC). Deterministic.

    Args:
        atlas: geometry of the atlas.
        count: number of regions wanted; small bodies get fewer.
    """
    labels = slic(
        atlas.image.astype(np.float32) / _GREY_LEVELS,
        n_segments=min(count, max(1, atlas.body_cells // _MIN_CELLS)),
        compactness=_COMPACTNESS,
        max_num_iter=_ITERATIONS,
        channel_axis=None,
        mask=atlas.body,
        spacing=np.asarray(atlas.grid_spacing_mm) / min(atlas.grid_spacing_mm),
        enforce_connectivity=False,  # splitting stray pieces off would give more regions than were asked for
        start_label=1,
    )
    return AtlasRegions(labels.astype(np.uint16), atlas.grid_spacing_mm, atlas.grid_origin_mm)
