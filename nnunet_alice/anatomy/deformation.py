"""What an affine map leaves over: a smooth displacement of every point of a case, found by SimpleITK's demons.

An affine map lays bodies on each other, and organs only roughly. On 17 abdominal CTs, labels of the atlas overlap with
those of a case by a Dice of 0.34 after it. After the demons it is 0.48 (docs/results/registrations.md).

Demons compare intensities, and do harm where contrast differs. So they run twice: on the intensities as they are, and
on intensities that were normalised locally. The way whose edges agree better is kept, if they agree better than before.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.anatomy.registration import (
    body_share_cells,
    correlation,
    edges,
    on_one_thread,
    to_sitk,
    warp_atlas,
)

#: Levels: thinning of the grid, and iterations there.
_LEVELS = ((4, 30), (2, 30), (1, 20))
#: Levels on which an axis would have fewer cells are left out.
_MIN_EDGE = 8
#: Smoothing of the displacement after every iteration, cells.
SMOOTHING_CELLS = 1.0
#: Neighbourhood of the local normalisation, as a share of the cube root of the body's volume.
_NEIGHBOURHOOD_SHARE = 0.15
#: Smallest deviation there, of the 255 steps of a coarse image: noise of flat organs is not blown up.
_MIN_DEVIATION = 25
#: Of the fixed point, which ends at a tolerance; only where the displacement folds it may not get there.
_MAX_ITERATIONS_BACK = 50
_TOLERANCE_MM = 1e-9
#: Every so many cells of the grid a displacement is kept.
_STEP_CELLS = 2


@dataclass(frozen=True)
class Deformation:
    """Smooth displacement of points of a case, to be added before its affine map to the atlas.

    Attributes:
        displacement_mm: (3, z, y, x) float16, components (z, y, x), on a regular grid of the case.
        origin_mm: (3,) first point of that grid in the case.
        step_mm: (3,) distance of two of its points.
    """

    displacement_mm: np.ndarray
    origin_mm: tuple[float, ...]
    step_mm: tuple[float, ...]

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """Return displaced points (..., 3), mm (z, y, x); outside of the grid the nearest displacement counts."""
        places = np.moveaxis((points_mm - np.asarray(self.origin_mm)) / self.step_mm, -1, 0)
        moved = [
            ndimage.map_coordinates(component, places, output=np.float64, order=1, mode="nearest")
            for component in self._components
        ]
        return points_mm + np.stack(moved, axis=-1)

    def back(self, points_mm: np.ndarray) -> np.ndarray:
        """Return the points (..., 3) that :meth:`at` displaces to these, by fixed-point iteration."""
        found = np.array(points_mm, dtype=np.float64)
        for _ in range(_MAX_ITERATIONS_BACK):
            missing = points_mm - self.at(found)
            found += missing
            if np.abs(missing).max(initial=0) < _TOLERANCE_MM:
                break
        return found

    @cached_property
    def _components(self) -> np.ndarray:
        """The displacement as scipy takes it."""
        return self.displacement_mm.astype(np.float32)


#: moves no point
NO_DEFORMATION = Deformation(np.zeros((3, 1, 1, 1), np.float16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _values(image: np.ndarray, _body: np.ndarray, _case: CaseGeometry) -> np.ndarray:
    """Return the coarse image in [0, 1]."""
    return image / np.float32(255)


def _normalised(image: np.ndarray, body: np.ndarray, case: CaseGeometry) -> np.ndarray:
    """Return the image less its mean around every cell of a body, over its deviation there; 0 outside of the body."""
    values, weight = image.astype(np.float32), body.astype(np.float32)
    sigma = body_share_cells(case, _NEIGHBOURHOOD_SHARE)
    share = ndimage.gaussian_filter(weight, sigma) + np.float32(1e-3)
    values = values - ndimage.gaussian_filter(values * weight, sigma) / share
    variance = ndimage.gaussian_filter(values**2 * weight, sigma) / share
    return weight * values / np.sqrt(np.maximum(variance, np.float32(_MIN_DEVIATION**2)))


#: how demons see intensities
WAYS = {"values": _values, "normalised": _normalised}


def deform(affine: np.ndarray, case: CaseGeometry, atlas: CaseGeometry) -> Deformation:
    """Return the displacement that lays the structures of a case on those of the atlas. Deterministic, one thread.

    Args:
        affine: (4, 4), case mm -> atlas mm, (z, y, x).
        case: geometry of the case.
        atlas: geometry of the atlas.

    Returns:
        ``NO_DEFORMATION`` where edges do not agree better than by the affine map alone.
    """
    image, warped, warped_body = warp_atlas(affine, case, atlas)
    both = case.body & warped_body
    wanted = edges(case, image)[both]
    best, found = correlation(wanted, edges(case, warped)[both]), NO_DEFORMATION
    for seen_by_demons in WAYS.values():
        seen = [seen_by_demons(*one, case) for one in ((image, case.body), (warped, warped_body))]
        with on_one_thread():
            field = _demons(*(to_sitk(case, array) for array in seen))
            moved = sitk.DisplacementFieldTransform(sitk.Image(field))  # of a copy, as it empties its image
            deformed = sitk.GetArrayFromImage(sitk.Resample(to_sitk(case, warped), moved))
        agreement = correlation(wanted, edges(case, deformed)[both])
        if agreement > best:
            best, found = agreement, _stored(field)
    return found


def _stored(field: sitk.Image) -> Deformation:
    vectors = sitk.GetArrayFromImage(field)[::_STEP_CELLS, ::_STEP_CELLS, ::_STEP_CELLS, ::-1]
    return Deformation(
        np.moveaxis(vectors, -1, 0).astype(np.float16),
        field.GetOrigin()[::-1],
        tuple(_STEP_CELLS * length for length in field.GetSpacing()[::-1]),
    )


def _demons(fixed: sitk.Image, moving: sitk.Image) -> sitk.Image:
    """Return the displacements (float64 vectors in mm) that lay one image on the other, from coarse levels to fine."""
    field = None
    for thinning, iterations in _LEVELS:
        if thinning > 1 and min(fixed.GetSize()) < _MIN_EDGE * thinning:
            continue
        seen = [_thinned(image, thinning) for image in (fixed, moving)]
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(SMOOTHING_CELLS)
        demons.SetSmoothDisplacementField(True)
        demons.SetMaximumRMSError(0.0)  # else they stop at changes below 0.02 mm: at once where cells are that small
        field = demons.Execute(*seen) if field is None else demons.Execute(*seen, _onto(field, seen[0]))
    assert field is not None, "the finest level is never left out"
    return field


def _thinned(image: sitk.Image, thinning: int) -> sitk.Image:
    if thinning == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [thinning / 2 * length for length in image.GetSpacing()])
    return sitk.Shrink(smooth, [thinning] * 3)


def _onto(field: sitk.Image, image: sitk.Image) -> sitk.Image:
    """Return the displacements at the voxels of an image."""
    return sitk.Resample(field, image, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
