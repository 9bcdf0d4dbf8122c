"""Body mask of an unlabelled volume: CT or MR, any intensity scale, air around the body or none.

Nothing here knows Hounsfield units, because nnU-Net's preprocessed cases are z-scored. What is used instead: air that
surrounds a body touches the border of the volume, is darker than the body and much more uniform than it.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

#: Raised when masks change: what was made of older ones is made again.
VERSION = 2
#: The mask is computed on cells. The middle one of the volume's three extents has about so many of them: 3 to 4 mm for
#: a torso. Nothing is said in mm, so that a mouse, a rock and a person are all treated alike.
CELLS = 100
#: No more cells than this, however long a volume is.
MAX_CELLS = 2_000_000
#: An axis is never thinned out to fewer cells than this, so that small volumes keep their own voxels.
MIN_CELLS_PER_AXIS = 48
#: A value that fills this share of the border is padding (outside a CT's round field of view, a stripped skull).
PADDING_SHARE = 0.2
#: Air: this share of all voxels darker than the threshold lies in the lower part (``AIR_SPREAD``) of the range between
#: the darkest voxels and the body's median (CT: 0.8 to 0.95). Tissue is spread over the whole range (hippocampus MR:
#: at most 0.4).
AIR_SPREAD = 0.15
AIR_SHARE = 0.6
#: Air covers at least this share of the volume's side faces, and the body at least this share of the volume.
MIN_BORDER_AIR = 0.03
MIN_BODY = 0.005
#: Radius of the opening that cuts off tables, tubes and coils, in cells; at most ``MAX_REACH`` of them along an axis.
OPENING_CELLS = 1.15
MAX_REACH = 3


def body_mask(image: np.ndarray, spacing_mm: tuple[float, float, float], *, axial_axis: int = 0) -> np.ndarray:
    """Return which voxels belong to the body, its air-filled organs included: bool (z, y, x).

    Per channel: padding is recognised as one exact value on the border, air by a threshold (Otsu's) whose dark side is
    uniform and touches the border. Table and tubes are opened away. The largest part is kept, and holes are filled in
    3D and slice by slice (lungs that the field of view cuts, and airways, are open to the outside only along the body).
    Several channels: the union of the channels that show air. Fine grids are thinned out to about ``CELLS`` cells an
    axis, and the mask is enlarged again by nearest neighbour.

    A volume without air around it (a tight crop) is all body; so is one where nothing sensible is found: the mask is
    never empty. Known limit: a crop *inside* the chest that cuts through lung on a side face looks like a body
    surrounded by air. Lung beyond the last tissue is then taken for air.

    Args:
        image: (z, y, x) or (C, z, y, x), finite, any scale and type.
        spacing_mm: voxel size (z, y, x); only the ratios count.
        axial_axis: the axis along the body (0, 1 or 2 of z, y, x); its slices are filled one by one.

    Raises:
        ValueError: the image has neither three nor four axes.
    """
    if image.ndim not in (3, 4) or len(spacing_mm) != 3:
        raise ValueError(f"body_mask takes (z, y, x) or (C, z, y, x) and three spacings, not {image.shape}.")
    channels = image[None] if image.ndim == 3 else image
    shape = channels.shape[1:]
    factors, ball = _cells(shape, spacing_mm)
    # The middle voxel of each block stands for it; a median would be no better after the smoothing in `_channel_mask`.
    thin = tuple(slice(min(f // 2, n - 1), None, f) for f, n in zip(factors, shape, strict=True))
    coarse = np.zeros(tuple(-(-n // f) for f, n in zip(factors, shape, strict=True)), dtype=bool)
    for channel in channels:
        values = np.ascontiguousarray(channel[thin], dtype=np.float32)
        values = np.pad(values, [(0, c - v) for c, v in zip(coarse.shape, values.shape, strict=True)], mode="edge")
        found = _channel_mask(values, ball, axial_axis)
        if found is not None:
            coarse |= found
    if not coarse.any():
        return np.ones(shape, dtype=bool)
    for axis, (factor, size) in enumerate(zip(factors, shape, strict=True)):
        coarse = np.repeat(coarse, factor, axis=axis) if factor > 1 else coarse
        coarse = coarse[(slice(None),) * axis + (slice(size),)]
    return coarse


def _cells(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> tuple[tuple[int, ...], np.ndarray]:
    """Return voxels a cell, per axis, and the ball of the opening: bool, cells."""
    cell_mm = sorted(n * s for n, s in zip(shape, spacing_mm, strict=True))[1] / CELLS
    while True:
        factors = tuple(
            max(1, min(round(cell_mm / s), n // MIN_CELLS_PER_AXIS)) for n, s in zip(shape, spacing_mm, strict=True)
        )
        if math.prod(n / f for n, f in zip(shape, factors, strict=True)) <= MAX_CELLS:
            break
        cell_mm *= 1.2
    return factors, _ball([OPENING_CELLS * cell_mm / (f * s) for f, s in zip(factors, spacing_mm, strict=True)])


def _ball(radius: Sequence[float]) -> np.ndarray:
    """Return ellipsoid of the radius in cells, per axis; at least a cross along each axis whose cells are no slabs."""
    reach = [min(max(1, int(r)), MAX_REACH) if r >= 0.5 else 0 for r in radius]
    grid = np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij")
    squares = [(g / max(r, 1)) ** 2 for g, r in zip(grid, reach, strict=True)]
    return np.sum(squares, axis=0) <= 1.0


def _channel_mask(values: np.ndarray, ball: np.ndarray, axial_axis: int) -> np.ndarray | None:
    """Return the body mask of one channel on the coarse grid, (z, y, x); None where there is no air around it."""
    padding = _padding(values)
    inside = ~padding
    if inside.mean() < MIN_BODY:
        return None
    # Padding becomes as dark as the darkest of the rest: it may lie far below air (-3024 against -1000 HU) or, in a
    # z-scored image of a stripped skull, in the middle of the tissue. It takes no part in finding the threshold.
    darkest = np.percentile(values[inside], 0.1)
    smooth = ndimage.gaussian_filter(np.where(padding, darkest, values), 0.6)
    threshold = _air_threshold(smooth[inside])
    bright = inside if threshold is None else inside & (smooth > threshold)
    # All that is not body must be around it: bowel gas in a tight crop does not count.
    sides = [axis for axis in range(3) if axis != axial_axis]
    if np.mean(np.concatenate([face.ravel() for face in _faces(~bright, sides)])) < MIN_BORDER_AIR:
        return None
    mask = _solid_body(bright, ball, axial_axis)
    return mask if mask.mean() >= MIN_BODY else None


def _padding(values: np.ndarray) -> np.ndarray:
    """Return voxels of the exact value that fills a good share of the border, if there is one: bool (z, y, x)."""
    border, counts = np.unique(np.concatenate([face.ravel() for face in _faces(values, range(3))]), return_counts=True)
    if counts.max() < PADDING_SHARE * counts.sum():
        return np.zeros(values.shape, dtype=bool)
    return values == border[counts.argmax()]


def _faces(values: np.ndarray, axes: Iterable[int]) -> list[np.ndarray]:
    """Return the first and last slice of each axis."""
    return [values.take(index, axis=axis) for axis in axes for index in (0, -1)]


def _air_threshold(values: np.ndarray) -> float | None:
    """Return the value between air and body; None where the dark side is no air."""
    low, high = np.percentile(values, [0.5, 99.0])
    clipped = np.clip(values, low, high)
    if not low < high:
        return None
    # Bright fat, contrast agent or bone can pull the first threshold up into the soft tissue: then air is one of two
    # groups on its dark side, and the second threshold finds it. A third would call any dark tail air.
    threshold = np.inf
    for _ in range(2):
        threshold = _otsu(clipped[clipped <= threshold])
        dark = clipped <= threshold
        if not dark.any() or dark.all():
            return None
        if _is_uniform(clipped[dark], low, np.median(clipped[~dark])):
            return threshold
    return None


def _is_uniform(dark: np.ndarray, low: float, body_level: float) -> bool:
    """Return whether most of the dark side lies close to its darkest end, as air does."""
    return bool(np.mean(dark < low + AIR_SPREAD * (body_level - low)) >= AIR_SHARE)


def _otsu(values: np.ndarray) -> float:
    """Return Otsu's threshold: the cut that makes the variance between the two sides largest."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(edges[1:-1][np.nanargmax(between)])


def _solid_body(bright: np.ndarray, ball: np.ndarray, axial_axis: int) -> np.ndarray:
    """Return the body without what lies beside it, holes filled."""
    core = _opened(bright, ball)
    # The opening rounds the body off: take back what is bright within its reach.
    body = _fill(ndimage.binary_dilation(core, ball) & bright, axial_axis)
    # A head in MR: bright scalp, dark skull, bright brain. The opening took the thin scalp away, but its filled outline
    # encloses everything found so far. A table's outline does not.
    outline = _opened(_fill(bright, axial_axis), ball)
    shell = _fill(ndimage.binary_closing(outline & ~body, iterations=2), axial_axis)
    return outline if (shell & body).sum() > 0.5 * body.sum() else body


def _opened(mask: np.ndarray, ball: np.ndarray) -> np.ndarray:
    """Return the largest part of the opened mask; the border is continued, so that a cut body stays whole."""
    reach = [n // 2 for n in ball.shape]
    opened = ndimage.binary_opening(np.pad(mask, [(r, r) for r in reach], mode="edge"), ball)
    return _largest(opened[tuple(slice(r, r + n) for r, n in zip(reach, mask.shape, strict=True))])


def _largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part."""
    parts, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def _fill(mask: np.ndarray, axial_axis: int) -> np.ndarray:
    """Fill holes slice by slice across the axial axis (which fills every hole in 3D too)."""
    slices = np.moveaxis(mask, axial_axis, 0)
    cross = ndimage.generate_binary_structure(2, 1)
    filled = np.stack([ndimage.binary_fill_holes(one, cross) for one in slices])
    return np.moveaxis(filled, 0, axial_axis)


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Return what nnU-Net does not take for cut-away background: any channel differs from 0, holes filled.

    The same as nnU-Net's ``create_nonzero_mask``, whose module takes seconds to import in every process.

    Args:
        image: (C, z, y, x).

    Returns:
        bool (z, y, x).
    """
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    # Only background that reaches the border is none of the image.
    return mask if mask.all() else ndimage.binary_fill_holes(mask)
