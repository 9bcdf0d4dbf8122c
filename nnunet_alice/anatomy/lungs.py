"""Lungs on CT without a different tool: threshold between air and tissue, components, and what is known of lungs.

Nothing here knows Hounsfield units, because nnU-Net's preprocessed cases are normalised: levels of air and tissue come
from the image. Meant for landmarks and for registration, not for volumetry of disease: what is as bright as tissue
(consolidation, effusion) is part of a lung only where lung surrounds it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage
from skimage.morphology import isotropic_closing, isotropic_dilation, isotropic_opening

from nnunet_alice.anatomy.body import body_mask
from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.errors import InputError
from nnunet_alice.triples import triple

#: Lungs are found on a grid of about this size.
_CELL_MM = 4.0
#: The threshold lies at this share of the way from air to soft tissue: -430 HU.
_SHARE = 0.55
#: Radii of the opening that cuts off airways and gas in thin layers, and of the closing that takes vessels in.
_OPENING_MM, _CLOSING_MM = 4.5, 9.0
#: A second lung has at least this share of the first one's volume, and so much of its height beside it; gas in stomach
#: and bowel lies below.
_SECOND_SHARE, _SECOND_OVERLAP = 0.15, 0.5
#: Litres that lungs, or the part of them that is in the image, can have.
_MIN_L, _MAX_L = 0.25, 12.0


def lung_mask(image: np.ndarray, spacing_mm: Sequence[float], *, axial_axis: int = 0) -> np.ndarray:
    """Return which voxels belong to the lungs, their vessels included: bool (z, y, x).

    Voxels of the body that are nearer to air than to soft tissue are opened, so that airways and gas in thin layers
    fall off. The largest component is a lung, or both where they touch; the next one is the other lung if it is large
    enough and lies beside it.

    Args:
        image: (z, y, x) CT, any scale and type.
        spacing_mm: voxel size (z, y, x).
        axial_axis: the axis along the body.

    Raises:
        InputError: no lungs are found, or not of a plausible volume.
    """
    factors = [max(1, round(_CELL_MM / step)) for step in spacing_mm]
    thin = tuple(slice(min(f // 2, n - 1), None, f) for f, n in zip(factors, image.shape, strict=True))
    values = np.asarray(image[thin], dtype=np.float32)
    body = body_mask(image, triple(spacing_mm), axial_axis=axial_axis)[thin]
    lungs = _lungs(values, body, np.multiply(factors, spacing_mm), axial_axis)
    for axis, (factor, size) in enumerate(zip(factors, image.shape, strict=True)):
        nearest = np.minimum(np.arange(size) // factor, lungs.shape[axis] - 1)
        lungs = lungs.take(nearest, axis=axis)
    return lungs


def lung_geometry(geometry: CaseGeometry) -> CaseGeometry:
    """Return a geometry for registration by the lungs: their shape as image, their surroundings as body.

    Args:
        geometry: of the case; its coarse image is searched.

    Raises:
        InputError: no lungs are found.
    """
    try:
        lungs = _lungs(
            geometry.image.astype(np.float32), geometry.body, np.asarray(geometry.grid_spacing_mm), geometry.axial_axis
        )
    except InputError as error:
        raise InputError(f"Case {geometry.case}: {error}").about(case=geometry.case, value=error.value) from None
    shape = np.round(255 * ndimage.gaussian_filter(lungs.astype(np.float32), 1.0)).astype(np.uint8)
    around = ndimage.binary_dilation(lungs, iterations=2)
    return replace(geometry, image=shape, packed_body=np.packbits(around))


def _lungs(values: np.ndarray, body: np.ndarray, cell_mm: np.ndarray, axial_axis: int) -> np.ndarray:
    """Return lungs on a coarse grid, see `lung_mask`."""
    dark = body & (ndimage.gaussian_filter(values, 0.5) < _threshold(values, body))
    core = isotropic_opening(dark, _OPENING_MM, spacing=cell_mm)
    lungs = _lungs_among(core, axial_axis)
    lungs = isotropic_dilation(lungs, _OPENING_MM, spacing=cell_mm) & dark  # the opening rounded them off
    lungs = isotropic_closing(lungs, _CLOSING_MM, spacing=cell_mm) & body
    lungs = np.stack([ndimage.binary_fill_holes(one) for one in np.moveaxis(lungs, axial_axis, 0)])
    lungs = np.moveaxis(lungs, 0, axial_axis)
    litres = float(lungs.sum() * cell_mm.prod() / 1e6)
    if not _MIN_L <= litres <= _MAX_L:
        raise InputError(
            f"no lungs are seen, what looks most like them has {litres:.2f} litres; lay landmarks over the body or "
            "name a mask file."
        ).about(value=f"{litres:.2f}")
    return lungs


def _threshold(values: np.ndarray, body: np.ndarray) -> float:
    """Return the value between air and soft tissue."""
    outside = values[~body]
    # Scanners fill what they did not see with one value far below air.
    outside = outside[outside > values.min()] if (values == values.min()).mean() > 0.05 else outside
    air = np.median(outside) if outside.size > 0.01 * values.size else np.percentile(values[body], 0.5)
    middle = (air + np.percentile(values[body], 90)) / 2
    tissue = np.median(values[body & (values >= middle)])
    return float(air + _SHARE * (tissue - air))


def _lungs_among(core: np.ndarray, axial_axis: int) -> np.ndarray:
    """Return the one or two components that are lungs."""
    parts, count = ndimage.label(core)
    if count == 0:
        return core
    sizes = np.bincount(parts.ravel())[1:]
    first, *others = np.argsort(sizes)[::-1] + 1
    across = tuple({0, 1, 2} - {axial_axis})
    height = np.flatnonzero((parts == first).any(axis=across))
    lungs = parts == first
    for other in others:
        if sizes[other - 1] < _SECOND_SHARE * sizes[first - 1]:
            break
        own = np.flatnonzero((parts == other).any(axis=across))
        if np.mean((own >= height[0]) & (own <= height[-1])) >= _SECOND_OVERLAP:
            return lungs | (parts == other)
    return lungs
