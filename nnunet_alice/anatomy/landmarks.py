"""Landmarks of DrasCLR: a grid of patches over the region of interest of the atlas, and where they lie in a case.

Points are in mm from the centre of voxel (0, 0, 0), axes (z, y, x), as everywhere in `nnunet_alice.anatomy`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree

from nnunet_alice.affine import Affine
from nnunet_alice.errors import InputError, StaleError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.triples import triple

#: Raised when the stored form changes.
VERSION = 1
#: Distances on a grid that differ by no more than this factor are the same but for rounding to voxels.
_TIE = 1.2
#: The paper's patches and their distance, and the region they are meant for: the cube root of its volume.
PATCH_MM, STEP_MM, REGION_MM = 32.0, 26.0, 260.0
#: Regions so many times smaller or larger than the paper's are no people: patches grow and shrink with them.
_HUMAN = 8.0


def to_locations(points_mm: np.ndarray, shape: Iterable[int], spacing: Iterable[float]) -> np.ndarray:
    """Return atlas coordinates for networks: the atlas array with its border voxels spans [-1, 1] an axis.

    Args:
        points_mm: (N, 3) points of the atlas.
        shape: voxels of the atlas.
        spacing: its voxel size in mm.

    Returns:
        (N, 3) float64; beyond [-1, 1] for points outside of the atlas.
    """
    spacing = np.asarray(spacing, dtype=float)
    return 2 * (np.asarray(points_mm) / spacing + 0.5) / np.asarray(shape, dtype=float) - 1


@dataclass(frozen=True)
class CaseLandmarks:
    """The landmarks that a case shows.

    Attributes:
        landmarks: (M,) int64, their numbers, ascending.
        points_vox: (M, 3) float64, where they lie in the case's array, sub-voxel, within [-0.5, shape - 0.5].
    """

    landmarks: np.ndarray
    points_vox: np.ndarray


@dataclass(frozen=True)
class Landmarks:
    """Landmarks on an atlas.

    Attributes:
        points_mm: (L, 3) float64, centres of the patches.
        atlas_shape: voxels of the atlas.
        atlas_spacing: its voxel size in mm.
        patch_mm: edge of a patch.
        step_mm: distance of neighbours on the grid, up to rounding to voxels.
    """

    points_mm: np.ndarray
    atlas_shape: tuple[int, int, int]
    atlas_spacing: tuple[float, float, float]
    patch_mm: float
    step_mm: float

    def __len__(self) -> int:
        return len(self.points_mm)

    @cached_property
    def locations(self) -> np.ndarray:
        """(L, 3) float32 atlas coordinates in [-1, 1], see `to_locations`."""
        return to_locations(self.points_mm, self.atlas_shape, self.atlas_spacing).astype(np.float32)

    def neighbours(self, k: int, seed: int = 0) -> np.ndarray:
        """Return numbers of the k landmarks nearest in mm to each: (L, k) int64, nearer ones first.

        Neighbours on a grid come in ties, six at one step, and each of them is as likely as the others: always taking
        the first would look to one side only. Grids lie on voxels, so distances within a fifth of each other are ties.

        Args:
            k: how many.
            seed: of the draw among ties.

        Raises:
            InputError: there are not k other landmarks, or k is not positive.
        """
        if not 1 <= k < len(self):
            raise InputError(
                f"{k} neighbours were asked for, but each of the {len(self)} landmarks has {len(self) - 1}; lay the "
                "landmarks with a smaller step."
            ).about(option="step", value=k)
        rng = np.random.default_rng(seed)
        tree = cKDTree(self.points_mm)
        reach = tree.query(self.points_mm, k + 1)[0][:, -1] * _TIE
        nearest = np.empty((len(self), k), dtype=np.int64)
        for number, found in enumerate(tree.query_ball_point(self.points_mm, reach, return_sorted=True)):
            others = rng.permutation([other for other in found if other != number])
            distances = np.linalg.norm(self.points_mm[others] - self.points_mm[number], axis=1)
            by_distance = np.argsort(distances, kind="stable")
            # A shell ends where the next landmark is farther than a tie from the shell's first.
            shells, start = np.zeros(len(others), dtype=int), distances[by_distance[0]]
            for position, index in enumerate(by_distance):
                if distances[index] > start * _TIE:
                    start = distances[index]
                    shells[by_distance[position:]] += 1
            nearest[number] = others[np.argsort(shells, kind="stable")[:k]]
        return nearest

    def in_case(self, case_to_atlas: np.ndarray, shape: Iterable[int], spacing: Iterable[float]) -> CaseLandmarks:
        """Return landmarks that lie in a case's array; the others are dropped.

        Args:
            case_to_atlas: 4 x 4 affine, homogeneous case mm (z, y, x, 1) -> atlas mm, as registration gives it.
            shape: voxels of the case's preprocessed array.
            spacing: its voxel size in mm.

        Raises:
            InputError: the affine is not a finite, invertible 4 x 4 affine.
        """
        points_mm = Affine(case_to_atlas).inverse().points(self.points_mm)
        points_vox = points_mm / np.asarray(spacing, dtype=float)
        inside = ((points_vox >= -0.5) & (points_vox <= np.asarray(shape) - 0.5)).all(axis=1)
        return CaseLandmarks(np.flatnonzero(inside), points_vox[inside])

    def save(self, path: str | os.PathLike) -> None:
        """Write the landmarks as JSON."""
        content = {
            "version": VERSION,
            "axes": "z, y, x; mm from the centre of the atlas voxel (0, 0, 0)",
            "atlas_shape": list(self.atlas_shape),
            "atlas_spacing": list(self.atlas_spacing),
            "patch_mm": self.patch_mm,
            "step_mm": self.step_mm,
            "points_mm": self.points_mm.tolist(),
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Landmarks":
        """Read landmarks that `save` wrote.

        Raises:
            InputError: the file is missing, no landmarks file or of a different version.
        """
        content = read_json(path)
        try:
            version = content["version"]
            points_mm = np.asarray(content["points_mm"], dtype=float)
            landmarks = cls(
                points_mm,
                triple(int(n) for n in content["atlas_shape"]),
                triple(float(s) for s in content["atlas_spacing"]),
                float(content["patch_mm"]),
                float(content["step_mm"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no landmarks file ({error!r}); delete it and lay them again.").about(
                path=path
            ) from None
        if version != VERSION or points_mm.ndim != 2 or points_mm.shape[1] != 3 or not np.isfinite(points_mm).all():
            raise StaleError(
                f"{path} is of a different version or damaged; delete it and lay the landmarks again."
            ).about(path=path)
        return landmarks


def standard_lengths(region: np.ndarray, spacing: Iterable[float]) -> tuple[float, float]:
    """Return the edge of a patch and the distance of patches, mm, that suit a region.

    Those of the paper wherever the region could be one of a person. As large a part of any other one, be it a
    mouse or a tooth.

    Args:
        region: (z, y, x), nonzero in the region of interest.
        spacing: voxel size in mm.
    """
    edge_mm = float(np.count_nonzero(region) * np.prod(tuple(spacing))) ** (1 / 3)
    if REGION_MM / _HUMAN <= edge_mm <= REGION_MM * _HUMAN:
        return PATCH_MM, STEP_MM
    return float(f"{PATCH_MM * edge_mm / REGION_MM:.2g}"), float(f"{STEP_MM * edge_mm / REGION_MM:.2g}")


def lay_landmarks(
    region: np.ndarray, spacing: Iterable[float], patch_mm: float = 32.0, step_mm: float = 26.0, min_share: float = 0.1
) -> Landmarks:
    """Cover a region of interest of the atlas with patches on a grid (DrasCLR, Section 3.1).

    The grid is centred on the region's bounding box and just covers it (the reference anchors it at a corner of the
    volume; centred, both sides of a symmetric region are treated alike). A patch is kept where more than ``min_share``
    of it lies in the region; what sticks out of the atlas does not.

    Args:
        region: (z, y, x), nonzero in the region of interest: body, a label, a lung mask.
        spacing: voxel size of the atlas in mm.
        patch_mm: edge of a patch.
        step_mm: distance between neighbouring patches.
        min_share: in [0, 1).

    Returns:
        the landmarks, sorted by z, y, x.

    Raises:
        InputError: the region is empty or not 3-D, a length is not positive, or no patch holds enough of the region.
    """
    region = np.asarray(region) != 0
    spacing = np.asarray(tuple(spacing), dtype=float)
    if region.ndim != 3 or spacing.shape != (3,) or not region.any():
        raise InputError(
            f"The region of interest must be a 3D mask with voxels in it, got shape {region.shape}."
        ).about(value=region.shape)
    if not (patch_mm > 0 and step_mm > 0 and 0 <= min_share < 1):
        raise InputError(
            f"Patch and step must be positive and the share in [0, 1), got {patch_mm} mm, {step_mm} mm, {min_share}."
        ).about(option="step", value=step_mm)
    patch_vox = np.maximum(1, np.round(patch_mm / spacing)).astype(int)
    starts = [
        _starts(np.flatnonzero(region.any(axis=tuple({0, 1, 2} - {axis}))), patch_vox[axis], step_mm / spacing[axis])
        for axis in range(3)
    ]
    share = _patch_sums(region, starts, patch_vox) / patch_vox.prod()
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1)[share > min_share]
    centres_vox = corners + (patch_vox - 1) / 2
    # With a step far beyond the patch, the outermost centres may leave the array.
    inside = ((centres_vox >= -0.5) & (centres_vox <= np.asarray(region.shape) - 0.5)).all(axis=1)
    if not inside.any():
        raise InputError(
            f"No patch of {patch_mm:g} mm lies with more than {min_share:.0%} in the region of interest; choose a "
            "smaller patch."
        ).about(option="patch")
    return Landmarks(
        centres_vox[inside] * spacing, region.shape, tuple(spacing.tolist()), float(patch_mm), float(step_mm)
    )


def _starts(occupied: np.ndarray, patch: int, step: float) -> np.ndarray:
    """Return first voxels of centred patches along an axis that cover ``occupied[0]`` to ``occupied[-1]``."""
    first, extent = occupied[0], occupied[-1] - occupied[0] + 1
    count = max(1, int(np.ceil((extent - patch) / step - 1e-9)) + 1)
    overhang = ((count - 1) * step + patch - extent) / 2
    return np.round(first - overhang + step * np.arange(count)).astype(int)


def _patch_sums(region: np.ndarray, starts: list[np.ndarray], patch: np.ndarray) -> np.ndarray:
    """Return voxels of the region in each patch of the grid, by a summed-area table; none outside."""
    table = np.zeros(np.add(region.shape, 1), dtype=np.int32 if region.size < 2**31 else np.int64)
    table[1:, 1:, 1:] = region
    for axis in range(3):
        np.cumsum(table, axis=axis, out=table)
    for axis in range(3):
        low = np.clip(starts[axis], 0, region.shape[axis])
        high = np.clip(starts[axis] + patch[axis], 0, region.shape[axis])
        table = table.take(high, axis=axis) - table.take(low, axis=axis)
    return table
