"""Case geometry: shape, body mask and a coarse picture of one preprocessed case, computed once and kept on disk.

Everything here comes from the image alone; labels are never read. Whoever asks where in the body a voxel lies (the
atlas, a learned index) starts from the same geometry.
"""

import logging
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_alice.anatomy.body import body_mask
from nnunet_alice.anatomy.orientation import axial_axis_of_plans
from nnunet_alice.cropping import part_inside
from nnunet_alice.dataset import LazyImage, PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.files import atomic_write
from nnunet_alice.triples import triple

logger = logging.getLogger(__name__)

#: A coarse grid has about this many cells, at most three times as many where voxels are nearly as large as cells:
#: 4 to 6 mm for a torso. Small volumes keep their own voxels.
MAX_GRID_CELLS = 80**3
#: Least share of an image's range of values that its coarse window spans.
_MIN_CONTRAST = 1e-6
#: Raised when the stored form changes: older files are computed again.
VERSION = 2
#: what reading a damaged npz file raises: a flipped bit in a header ends in any of these
UNREADABLE = (
    *(OSError, RuntimeError, ValueError, KeyError, EOFError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


@dataclass(frozen=True)
class CaseGeometry:
    """Shape, body and coarse image of one case. All axes are (z, y, x).

    A grid cell is a block of ``factors`` voxels; cell 0 starts at voxel 0, and the last cell of an axis may stick out
    of the array.

    Attributes:
        case: name of the case.
        shape: voxels of the preprocessed array.
        spacing: voxel size in mm.
        factors: voxels a grid cell.
        grid_shape: cells of the coarse grid.
        image: uint8, ``grid_shape``; the first channel averaged in each cell, 0 and 255 being the 0.5th and 99.5th
            percentile inside the body. So scans of different gain look alike.
        packed_body: ``np.packbits`` of the body mask on the grid; unpacked when asked, to keep many cases in memory.
        axial_axis: the axis along the body, 0, 1 or 2 of z, y, x.
    """

    case: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    factors: tuple[int, int, int]
    grid_shape: tuple[int, int, int]
    image: np.ndarray
    packed_body: np.ndarray
    axial_axis: int = 0

    @property
    def grid_spacing_mm(self) -> tuple[float, ...]:
        """Size of a grid cell in mm."""
        return tuple(f * s for f, s in zip(self.factors, self.spacing, strict=True))

    @property
    def grid_origin_mm(self) -> tuple[float, ...]:
        """Centre of grid cell (0, 0, 0) in mm; voxel (0, 0, 0) is at the origin."""
        return tuple((f - 1) / 2 * s for f, s in zip(self.factors, self.spacing, strict=True))

    @property
    def body(self) -> np.ndarray:
        """Body mask on the grid: bool, ``grid_shape``."""
        count = math.prod(self.grid_shape)
        return np.unpackbits(self.packed_body, count=count).reshape(self.grid_shape).astype(bool)

    @cached_property
    def body_cells(self) -> int:
        """Number of grid cells in the body."""
        return int(self.body.sum())

    def body_points(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw points uniformly in the body: any place in any voxel of a body cell is as likely as another.

        Args:
            count: number of points.
            rng: source of randomness.

        Returns:
            (count, 3) float64 voxels, (z, y, x), each within [0, shape - 1].
        """
        cells = np.flatnonzero(self.body)
        points = np.empty((0, 3))
        while len(points) < count:
            # Cells that stick out of the array are covered in part: draws outside are thrown away and drawn again.
            missing = count - len(points)
            cell = np.stack(np.unravel_index(rng.choice(cells, size=2 * missing + 8), self.grid_shape), axis=1)
            drawn = (cell + rng.random(cell.shape)) * self.factors - 0.5
            points = np.concatenate([points, drawn[(drawn < np.asarray(self.shape) - 0.5).all(axis=1)]])
        return np.clip(points[:count], 0, np.asarray(self.shape) - 1.0)

    def body_crop(self, first_vox: np.ndarray, patch_size: Sequence[int]) -> np.ndarray:
        """Return which voxels of a crop lie in the array and in the body: bool ``patch_size``.

        Args:
            first_vox: (3,) int, first voxel of the crop, (z, y, x); may lie outside.
            patch_size: (3,) crop size in voxels.
        """
        crop = np.zeros(tuple(patch_size), dtype=bool)
        source, target = part_inside(first_vox, patch_size, self.shape)
        body = self.body
        for axis in (2, 1, 0):  # the largest copy last, of whole planes
            body = body.take(np.arange(source[axis].start, source[axis].stop) // self.factors[axis], axis)
        crop[target] = body
        return crop

    def contains(self, points_vox: np.ndarray) -> np.ndarray:
        """Return which points (N, 3) lie in the array: bool (N,). A voxel reaches half a voxel to each side."""
        return np.all((points_vox >= -0.5) & (points_vox <= np.asarray(self.shape) - 0.5), axis=1)

    def in_body(self, points_vox: np.ndarray, tolerance_cells: int = 1) -> np.ndarray:
        """Return which points lie in the array and in the body or within ``tolerance_cells`` grid cells of it.

        Args:
            points_vox: (N, 3) voxels, (z, y, x).
            tolerance_cells: how many grid cells (per axis) a point may be away from the body.

        Returns:
            bool (N,).
        """
        found = np.zeros(len(points_vox), dtype=bool)
        inside = np.flatnonzero(self.contains(points_vox))
        if not len(inside):
            return found
        cells = np.floor((points_vox[inside] + 0.5) / self.factors).astype(int)
        body = self.body
        reach = np.arange(-tolerance_cells, tolerance_cells + 1)
        for offset in np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3):
            near = np.clip(cells + offset, 0, np.asarray(self.grid_shape) - 1)
            found[inside] |= body[near[:, 0], near[:, 1], near[:, 2]]
        return found


def grid_factors(shape: Sequence[int], spacing: Sequence[float]) -> tuple:
    """Return voxels a grid cell, per axis: about cubic in mm, ``MAX_GRID_CELLS`` cells, none finer than the data."""
    cell_mm = (math.prod(shape) * math.prod(spacing) / MAX_GRID_CELLS) ** (1 / 3)
    return tuple(min(n, max(1, round(cell_mm / s))) for n, s in zip(shape, spacing, strict=True))


def block_mean(image: LazyImage, factors: tuple[int, int, int]) -> np.ndarray:
    """Average an image (C, z, y, x) over blocks of voxels, reading it slab by slab.

    Args:
        image: array-like that reads when sliced (a blosc2 array); never read as a whole, so memory stays small.
        factors: voxels a block, (z, y, x). Blocks at the far border average the voxels that are there.

    Returns:
        float32 (C, ceil(z / f), ceil(y / f), ceil(x / f)).
    """
    channels, *shape = image.shape
    grid = [-(-n // f) for n, f in zip(shape, factors, strict=True)]
    result = np.empty((channels, *grid), dtype=np.float32)
    # Whole compressed chunks at a time: a thinner slab would unpack each chunk again and again.
    chunk = getattr(image, "chunks", (1, 1))[1]
    step = max(1, -(-chunk // factors[0]))
    starts = [np.arange(0, n, f) for n, f in zip(shape, factors, strict=True)]
    for channel in range(channels):
        for first in range(0, grid[0], step):
            last = min(first + step, grid[0])
            slab = np.asarray(image[channel, first * factors[0] : last * factors[0]], dtype=np.float32)
            for axis in range(3):
                origin = starts[axis][first:last] - first * factors[0] if axis == 0 else starts[axis]
                widths = np.diff(np.append(origin, slab.shape[axis])).astype(np.float32)
                slab = np.add.reduceat(slab, origin, axis=axis)
                slab /= widths.reshape([-1 if a == axis else 1 for a in range(3)])
            result[channel, first:last] = slab
    return result


def compute_geometry(case: str, image: LazyImage, spacing: Sequence[float], axial_axis: int = 0) -> CaseGeometry:
    """Return the geometry of a case from its image.

    Args:
        case: name of the case.
        image: (C, z, y, x), sliced to read.
        spacing: voxel size in mm, (z, y, x).
        axial_axis: the axis along the body, for :func:`body_mask`.

    Raises:
        InputError: the image is not three-dimensional, not finite, or shows no body.
    """
    if len(image.shape) != 4 or len(spacing) != 3:
        raise InputError(
            f"Case {case}: anatomy needs a 3D configuration, but its image has shape {image.shape}."
        ).about(case=case, value=image.shape)
    shape = triple(int(n) for n in image.shape[1:])
    factors = grid_factors(shape, spacing)
    coarse = block_mean(image, factors)
    if not np.isfinite(coarse).all():
        raise InputError(
            f"Case {case}: the preprocessed image holds NaN or Inf; mend the raw file and preprocess again."
        ).about(case=case, value="NaN")
    grid_spacing = triple(f * s for f, s in zip(factors, spacing, strict=True))
    body = np.asarray(body_mask(coarse, grid_spacing, axial_axis=axial_axis), dtype=bool)
    if not body.any() or coarse[0].min() == coarse[0].max():
        raise InputError(
            f"Case {case}: no body found in the preprocessed image; look at it, or leave the case out."
        ).about(case=case)
    low, high = np.percentile(coarse[0][body], [0.5, 99.5])
    floor = _MIN_CONTRAST * (coarse[0].max() - coarse[0].min())  # a body may be of one value
    scaled = (coarse[0] - low) * (255 / max(high - low, floor))
    window = np.clip(np.round(scaled), 0, 255).astype(np.uint8)
    return CaseGeometry(
        case, shape, triple(spacing), factors, triple(body.shape), window, np.packbits(body), axial_axis
    )


def geometry_file(dataset: PreprocessedDataset, case: str) -> Path:
    """Return where the geometry of a case is kept."""
    return dataset.anatomy_folder / "cases" / f"{case}.npz"


def load_geometry(dataset: PreprocessedDataset, case: str, overwrite: bool = False) -> CaseGeometry:
    """Return the geometry of a case; compute and store it where it is missing, older or of a different image.

    Args:
        dataset: the preprocessed dataset.
        case: name of the case.
        overwrite: compute again even if a file is there.

    Raises:
        InputError: see :func:`compute_geometry`.
    """
    path = geometry_file(dataset, case)
    if not overwrite and path.is_file():
        stored = _read(path, dataset, case)
        if stored is not None:
            return stored
    # Before the image is read: one that is replaced meanwhile is noticed next time.
    checksum = dataset.image_checksum(case)
    axial_axis = axial_axis_of_plans(dataset.plans)
    geometry = compute_geometry(case, dataset.image(case), dataset.spacing, axial_axis)
    with atomic_write(path) as temporary:
        np.savez_compressed(
            temporary,
            version=VERSION,
            checksum=checksum or "",
            axial_axis=axial_axis,
            shape=geometry.shape,
            spacing=geometry.spacing,
            factors=geometry.factors,
            image=geometry.image,
            packed_body=geometry.packed_body,
        )
    return geometry


def geometry_checksum(dataset: PreprocessedDataset, case: str) -> str | None:
    """Return the checksum of the image that :func:`load_geometry` answers for, to be stored with what is made of it."""
    try:
        with np.load(geometry_file(dataset, case), allow_pickle=False) as file:
            if _fits(file, dataset, case):
                return str(file["checksum"])
    except UNREADABLE:
        pass  # it will be computed from the image that is there now
    return dataset.image_checksum(case)


def _fits(file: Mapping[str, Any], dataset: PreprocessedDataset, case: str) -> bool:
    """Return whether a stored geometry is of this version and belongs to the preprocessed image as it is now."""
    if int(file["version"]) != VERSION or not np.allclose(file["spacing"], dataset.spacing):
        return False
    if int(file["axial_axis"]) != axial_axis_of_plans(dataset.plans):
        return False
    if str(file["checksum"]) == dataset.image_checksum(case):
        return True
    try:
        dataset.shape(case)
    except (OSError, RuntimeError):
        return True  # nothing says that an image that cannot be opened is a different one; whoever reads it complains
    return False


def _read(path: Path, dataset: PreprocessedDataset, case: str) -> CaseGeometry | None:
    """Return the geometry in a file; None when the file is of a different version or image, or unreadable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not _fits(file, dataset, case):
                return None
            return CaseGeometry(
                case,
                tuple(file["shape"].tolist()),
                tuple(file["spacing"].tolist()),
                tuple(file["factors"].tolist()),
                file["image"].shape,
                file["image"],
                file["packed_body"],
                int(file["axial_axis"]),
            )
    except UNREADABLE as error:
        logger.warning("%s is unreadable (%s) and is computed again.", path, error)
        return None
