"""Features of patches at landmarks, of whole cases, and dense maps, from any pretraining checkpoint of ours.

DrasCLR, Section 4.3: a case is the mean of the features at its landmarks.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.world import image_in_world
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.features.encoders import TrainedEncoder
from nnunet_alice.features.images import DatasetImages, OpenedImage, RawImages
from nnunet_alice.files import atomic_write
from nnunet_alice.parallel import Outcomes, for_each_case
from nnunet_alice.views.border_crops import crop_with_border
from nnunet_alice.words import counted

#: patches encoded at once
_BATCH = 8


@dataclass(frozen=True)
class PatchFeatures:
    """Features of one case.

    Attributes:
        landmarks: (M,) numbers of the landmarks that the case shows.
        locations: (M, 3) float32, where they are in the atlas, [-1, 1], (z, y, x).
        points_vox: (M, 3) float64, where they are in the case's preprocessed array.
        features: (M, C) float32.
    """

    landmarks: np.ndarray
    locations: np.ndarray
    points_vox: np.ndarray
    features: np.ndarray


def case_to_atlas(encoder: TrainedEncoder, opened: OpenedImage) -> np.ndarray:
    """Return (4, 4) map from mm of a case to mm of the encoder's atlas: the stored one, or a new registration.

    Raises:
        InputError: the registration is poor.
        NotPreparedError: the encoder was opened without its atlas.
    """
    known = opened.known_affine(encoder.needed_atlas)
    if known is not None:
        return known
    result = encoder.needed_atlas.register(opened.geometry)
    if result.problem:
        raise InputError(
            f"Case {opened.geometry.case}: its registration to the atlas is poor ({result.problem})."
        ).about(case=opened.geometry.case)
    return result.affine


def patch_features(encoder: TrainedEncoder, opened: OpenedImage) -> PatchFeatures:
    """Return features at all landmarks that a case shows.

    Raises:
        InputError: its registration is poor, or it shows no landmark.
    """
    geometry, landmarks, affine = opened.geometry, encoder.landmarks, case_to_atlas(encoder, opened)
    if landmarks is None:
        raise NotPreparedError("This encoder was opened without its atlas and landmarks.")
    seen = landmarks.in_case(affine, geometry.shape, encoder.spacing)
    if not len(seen.landmarks):
        raise InputError(f"Case {geometry.case} shows none of the {counted(len(landmarks), 'landmark')}.").about(
            case=geometry.case
        )
    locations = landmarks.locations[seen.landmarks]
    features = encode_patches(encoder, opened.image, seen.points_vox, locations)
    return PatchFeatures(seen.landmarks, locations, seen.points_vox, features)


def point_features(encoder: TrainedEncoder, opened: OpenedImage, points_vox: np.ndarray) -> np.ndarray:
    """Return features of the patches around any points of a case, each at its location in the atlas: (M, C) float32.

    Args:
        encoder: the encoder.
        opened: the case.
        points_vox: (M, 3) voxels of the preprocessed array, (z, y, x).

    Raises:
        InputError: the registration of the case is poor, or there is no point.
    """
    locations = locations_of(encoder, case_to_atlas(encoder, opened), points_vox)
    return encode_patches(encoder, opened.image, points_vox, locations)


def locations_of(encoder: TrainedEncoder, case_to_atlas_mm: np.ndarray, points_vox: np.ndarray) -> np.ndarray:
    """Return atlas coordinates of points (M, 3) of a preprocessed array: (M, 3) float32 in [-1, 1], (z, y, x)."""
    points_mm = Affine(case_to_atlas_mm).points(np.asarray(points_vox) * np.asarray(encoder.spacing))
    return np.clip(encoder.needed_atlas.locations(points_mm), -1, 1).astype(np.float32)


def encode_patches(encoder: TrainedEncoder, image: Any, points_vox: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """Return features (M, C) float32 of the patches around points (M, 3) at locations (M, 3), a few at a time.

    Raises:
        InputError: there is no point.
    """
    if not len(points_vox):
        raise InputError("points_vox holds no point to take features of; give at least one.").about(option="points_vox")
    found = []
    for first in range(0, len(locations), _BATCH):
        part = slice(first, first + _BATCH)
        crops = np.stack([crop_with_border(image, point, encoder.size) for point in points_vox[part]])
        found.append(encoder.features(torch.from_numpy(crops), torch.from_numpy(locations[part])))
    return np.concatenate(found)


def dense_features(encoder: TrainedEncoder, opened: OpenedImage) -> np.ndarray:
    """Return the feature map of a whole case at the resolution of the encoder's bottleneck.

    The case is covered by the encoder's crops, half a crop apart, each encoded at the location of its middle; where
    crops overlap, their features are averaged, weighted towards the middle of each.

    Args:
        encoder: the encoder.
        opened: the case.

    Returns:
        (C, *cells) float32; cell i covers voxels ``i * stride`` to ``(i + 1) * stride - 1``.
    """
    stride, size = np.asarray(encoder.strides[-1]), np.asarray(encoder.size)
    shape = np.asarray(opened.geometry.shape)
    # A plain encoder asks for no place, so that no registration can fail.
    affine = case_to_atlas(encoder, opened) if encoder.conditional else None
    cells, window = -(-shape // stride), size // stride
    bottleneck = np.asarray(encoder.strides[-1])
    step = np.maximum(bottleneck, size // 2 // bottleneck * bottleneck)
    starts = [np.arange(0, max(1, n - s + 1) + p - 1, p) for n, s, p in zip(shape, size, step, strict=True)]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 3)
    weight = np.ones(window, dtype=np.float32)
    for axis, n in enumerate(window):
        ramp = 1 - np.abs((np.arange(n) + 0.5) / n - 0.5)
        weight *= ramp.reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32)
    total, weights = None, np.zeros(cells, dtype=np.float32)
    for first in range(0, len(corners), _BATCH):
        part = corners[first : first + _BATCH]
        crops = np.stack([crop_with_border(opened.image, corner + size // 2, size) for corner in part])
        where = np.zeros((len(part), 3))
        if affine is not None:
            where = locations_of(encoder, affine, part + (size - 1) / 2)
        maps = encoder.stages(torch.from_numpy(crops), torch.from_numpy(where))[-1].float().cpu().numpy()
        if total is None:
            total = np.zeros((maps.shape[1], *cells), dtype=np.float32)
        for corner, found in zip(part // stride, maps, strict=True):
            inside = np.minimum(window, cells - corner)
            there = tuple(slice(a, a + n) for a, n in zip(corner, inside, strict=True))
            here = tuple(slice(n) for n in inside)
            total[(slice(None), *there)] += found[(slice(None), *here)] * weight[here]
            weights[there] += weight[here]
    return total / weights


def write_dense(path: str | os.PathLike, maps: np.ndarray, stride: Sequence[int], world_affine: Affine) -> None:
    """Write a feature map as a NIfTI of vectors that lies where the image lies, one voxel a cell.

    Args:
        path: ``.nii.gz`` to write.
        maps: (C, *cells).
        stride: (3,) voxels of the preprocessed array a cell.
        world_affine: (z, y, x) voxels of the preprocessed array -> world mm, LPS.
    """
    steps = np.asarray(stride, dtype=float)
    image = image_in_world(np.moveaxis(maps, 0, -1), world_affine @ Affine.scaling(steps, (steps - 1) / 2))
    with atomic_write(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def extract(
    encoder: TrainedEncoder, images: DatasetImages | RawImages, level: str, output: str | os.PathLike
) -> Outcomes:
    """Take features of all cases and write them; a case that fails stops no other.

    - ``case``: NPZ with ``cases`` (N,), ``features`` (N, C), ``landmarks_seen`` (N,). The mean is over the landmarks
      that a case shows: compare cases of one field of view.
    - ``patch``: NPZ with ``cases`` (N,) and, over all patches, ``case`` (index into it), ``landmark``, ``location``,
      ``point_vox``, ``features``. All of it is held in memory: 4 C bytes a patch.
    - ``dense``: ``output`` is a folder; one ``CASE.nii.gz`` a case.

    Returns:
        outcomes of all cases; at level ``case`` with mean feature and number of landmarks seen, at ``patch`` with
        :class:`PatchFeatures`, at ``dense`` with the file.

    Raises:
        InputError: no case could be done; the message holds the first reason.
    """

    def write(case: str) -> Path:
        opened = images.open(case)
        path = Path(output) / f"{case}.nii.gz"
        write_dense(path, dense_features(encoder, opened), encoder.strides[-1], opened.world_affine())
        return path

    def mean(case: str) -> tuple[np.ndarray, int]:  # no more than this is kept of a case
        found = patch_features(encoder, images.open(case))
        return found.features.mean(axis=0), len(found.landmarks)

    work = {"dense": write, "case": mean, "patch": lambda case: patch_features(encoder, images.open(case))}[level]
    outcomes: Outcomes[Any] = for_each_case(work, images.cases, doing="Features")
    outcomes.check_some("turned into features")
    results = list(outcomes.results.values())
    if level == "dense":
        return outcomes
    content = {"level": level, "cases": np.array(list(outcomes.results)), "method": encoder.run["method"]}
    if level == "case":
        means, seen = zip(*results, strict=True)
        content |= {"features": np.stack(means), "landmarks_seen": np.array(seen)}
    else:
        content["case"] = np.repeat(np.arange(len(results)), [len(row.landmarks) for row in results])
        for name, attribute in (("landmark", "landmarks"), ("location", "locations"), ("point_vox", "points_vox")):
            content[name] = np.concatenate([getattr(row, attribute) for row in results])
        content["features"] = np.concatenate([row.features for row in results])
    with atomic_write(output) as temporary:
        np.savez_compressed(temporary, **content)
    return outcomes
