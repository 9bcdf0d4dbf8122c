"""Batches of DrasCLR: one landmark in many subjects, two augmented views of each, and the patches around it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor
from torch.nn import functional

from nnunet_alice.cropping import crop_bounds
from nnunet_alice.errors import InputError
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.views.augmentation import augment
from nnunet_alice.views.batch import Batch
from nnunet_alice.views.readings import Readings, UnreadableCaseError

#: Edge of the reference's patches in voxels, which its translation is a share of.
_REFERENCE_PATCH_VOX = 32


@dataclass(frozen=True)
class AffineRange:
    """How far the affine augmentation goes (the reference's values); every number is drawn uniformly.

    Attributes:
        translation: up to this share of the crop to each side, on every axis (12 of 32 voxels).
        rotation_degrees: up to this angle about every axis.
        scale: up to this share larger or smaller, the same on all axes.
    """

    translation: float = 12 / _REFERENCE_PATCH_VOX
    rotation_degrees: float = 10.0
    scale: float = 0.1


def noise_and_gamma(probability: float = 0.25) -> BasicTransform:
    """Gaussian noise and contrast (gamma), each with ``probability`` (DrasCLR, Section 4.2).

    The reference adds up to 50 HU, 4 % of its range of intensities. Ours are nnU-Net's normalised ones (about zero
    mean, unit variance): the noise has a standard deviation of up to 0.1 of theirs.
    """
    gamma = GammaTransform(
        gamma=(0.7, 1.5), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
    )
    return ComposeTransforms(
        [
            RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.1)), apply_probability=probability),
            RandomTransform(gamma, apply_probability=probability),
        ]
    )


def draw_affine(
    limits: AffineRange, size: Sequence[int], spacing: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Draw an affine map from voxels of the augmented crop to voxels of the crop, both counted from the middle.

    Rotation and scale happen in mm, so that anisotropic voxels are not sheared.

    Args:
        limits: how far it goes.
        size: (3,) crop size in voxels.
        spacing: (3,) voxel size in mm.
        rng: source of randomness.

    Returns:
        (3, 4), axes (z, y, x).
    """
    matrix = np.eye(3) * (1 + rng.uniform(-limits.scale, limits.scale))
    for axis in range(3):
        angle = math.radians(rng.uniform(-limits.rotation_degrees, limits.rotation_degrees))
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    spacing = np.asarray(spacing, dtype=float)
    shift = rng.uniform(-limits.translation, limits.translation, size=3) * np.asarray(size)
    return np.concatenate([matrix * spacing / spacing[:, None], shift[:, None]], axis=1)


def apply_affine_to_crops(crops: Tensor, affines: np.ndarray) -> Tensor:
    """Resample crops (linear), what lies outside being the nearest voxel of the border.

    Args:
        crops: (N, C, z, y, x) float32.
        affines: (N, 3, 4) from `draw_affine`.

    Returns:
        (N, C, z, y, x).
    """
    size = np.asarray(crops.shape[2:], dtype=float)
    # grid_sample counts from -1 to 1 over the array, borders included, x first.
    matrix = affines[:, :, :3] * size / size[:, None]
    shift = 2 * affines[:, :, 3] / size
    theta = np.concatenate([matrix[:, ::-1, ::-1], shift[:, ::-1, None]], axis=2)
    grid = functional.affine_grid(torch.from_numpy(theta.astype(np.float32)), list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)


def crop_with_border(image, centre_vox: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """Crop ``size`` voxels around a point of the volume; beyond its end its outermost voxels are repeated.

    Unlike zeros, that does not draw an edge where a field of view happens to end, by which subjects could be told
    apart without looking at anatomy.

    Args:
        image: (C, z, y, x), numpy or blosc2 array; only what is needed is read.
        centre_vox: (3,) point, (z, y, x); voxel ``size // 2`` of the crop is the voxel nearest to it.
        size: (3,) crop size in voxels.
    """
    lower = crop_bounds(centre_vox, size)
    shape = image.shape[1:]
    wanted = [np.clip(np.arange(f, f + n), 0, end - 1) for f, n, end in zip(lower, size, shape, strict=True)]
    ranges = [slice(int(index[0]), int(index[-1]) + 1) for index in wanted]
    part = np.asarray(image[(slice(None), *ranges)], dtype=np.float32)
    for axis, (index, read) in enumerate(zip(wanted, ranges, strict=True), start=1):
        if part.shape[axis] < len(index):
            part = part.take(index - read.start, axis=axis)
    return part


@dataclass(frozen=True)
class LandmarkBatch(Batch):
    """One landmark in B subjects, who are the ``cases``.

    ``views`` ((2 + k) B, C, *size) are B first views, their B second views, and B patches at each neighbour.

    Attributes:
        landmark: its number.
        location: (3,) float32, of the landmark.
        neighbour_locations: (k, 3) float32.
        subjects: (B,) int64, numbers of the cases in ``places.cases``.
    """

    landmark: int
    location: Tensor
    neighbour_locations: Tensor
    subjects: Tensor


class LandmarkCrops:
    """Makes batches of one landmark; callable as ``make_batch`` of ``NumberedBatches``.

    Batch n shows landmark ``order[n % L]`` of a permutation of all landmarks that is drawn anew every L batches, so
    that all are visited equally often. Subjects are drawn without repetition among the cases that show the landmark
    and its neighbours; where these are fewer than B, the batch is smaller. Others take the place of those that cannot
    be read; where too few of a landmark's are left, the batch shows the landmark that comes next.

    Args:
        places: where landmarks lie in the registered cases.
        cases: cases to draw from; those that are not registered are left out.
        open_image: case -> (C, z, y, x) array, read lazily.
        size: (3,) crop size in voxels.
        spacing: (3,) voxel size in mm.
        batch_size: B.
        neighbours: k, 0 for none.
        seed: of the permutations; ranks with different seeds visit different landmarks.
        affine: limits of the affine augmentation, None for none.
        transform: intensity augmentation of each patch, None for none.
        min_cases: landmarks that fewer cases show (with their neighbours) are left out.

    Raises:
        InputError: no landmark is shown by enough cases, or there are fewer than k + 1 landmarks.
    """

    def __init__(
        self,
        places: LandmarkPlaces,
        cases: Sequence[str],
        open_image: Callable[[str], np.ndarray],
        size: Sequence[int],
        spacing: Sequence[float],
        batch_size: int,
        *,
        neighbours: int = 2,
        seed: int = 0,
        affine: AffineRange | None = AffineRange(),
        transform: BasicTransform | None = None,
        min_cases: int = 2,
    ) -> None:
        self.places = places
        self.open_image = open_image
        self.size = tuple(int(n) for n in size)
        self.spacing = tuple(spacing)
        self.batch_size = batch_size
        self.seed = seed
        self.affine = affine
        self.transform = transform
        self.min_cases = min_cases
        self.readings = Readings()
        number_of = {case: number for number, case in enumerate(places.cases)}
        self.subjects = np.array(sorted(number_of[case] for case in cases if case in number_of), dtype=np.int64)
        count = len(places.landmarks)
        self.neighbours = (
            places.landmarks.neighbours(neighbours) if neighbours else np.empty((count, 0), dtype=np.int64)
        )
        shown = [len(self._subjects_at(number)) >= min_cases for number in range(count)]
        self.landmarks = np.flatnonzero(shown)
        if not len(self.landmarks):
            raise InputError(
                f"None of the {count} landmarks is shown, with its {neighbours} neighbours, by {min_cases} of the "
                f"{len(self.subjects)} registered cases; look at landmarks.png, add cases, or choose another --roi "
                "with nnunet_alice anatomy."
            )

    def landmark_of(self, number: int) -> int:
        """Landmark of batch ``number``."""
        visit, place = divmod(number, len(self.landmarks))
        return int(self.landmarks[np.random.default_rng([self.seed, visit]).permutation(len(self.landmarks))[place]])

    def __call__(self, number: int, rng: np.random.Generator) -> LandmarkBatch:
        landmark, patches = self._first_readable(number, rng)
        subjects = np.array(list(patches), dtype=np.int64)
        around = self.neighbours[landmark]
        by_place = list(zip(*patches.values(), strict=True))
        crops = torch.stack([patch for found in (by_place[0], *by_place) for patch in found])
        locations = torch.from_numpy(self.places.landmarks.locations)
        return LandmarkBatch(
            views=self._augmented(crops, rng),
            cases=[self.places.cases[subject] for subject in subjects],
            landmark=landmark,
            location=locations[landmark].clone(),
            neighbour_locations=locations[around],
            subjects=torch.from_numpy(subjects),
        )

    def _first_readable(self, number: int, rng: np.random.Generator) -> tuple[int, dict[int, list[Tensor]]]:
        """Landmark of batch ``number`` and its patches; the next one that enough readable subjects show, if need be.

        Raises:
            InputError: there is none.
        """
        for later in range(2 * len(self.landmarks)):  # from anywhere in a round to the end of the next
            landmark = self.landmark_of(number + later)
            patches = self._read(landmark, rng)
            if len(patches) >= min(self.min_cases, self.batch_size):
                return landmark, patches
        raise InputError(
            f"No landmark is shown by {self.min_cases} of the {len(self.subjects)} cases that can be read; the first "
            f"that cannot: {self.readings.first}"
        )

    def _read(self, landmark: int, rng: np.random.Generator) -> dict[int, list[Tensor]]:
        """Patches at a landmark and its neighbours, of up to B subjects."""
        there = self._subjects_at(landmark)
        count = min(self.batch_size, len(there))
        chosen = rng.choice(there, size=count, replace=False)
        points = [self.places.points_vox(place) for place in (landmark, *self.neighbours[landmark])]
        patches: dict[int, list[Tensor]] = {}
        self._add_patches(patches, chosen, count, points)
        if len(patches) < count:
            self._add_patches(patches, rng.permutation(np.setdiff1d(there, chosen)), count, points)
        return patches

    def _add_patches(self, patches: dict[int, list[Tensor]], subjects: np.ndarray, most: int, points: list) -> None:
        """Add the patches of the subjects that can be read, one after the other, until there are ``most``."""
        for subject in subjects.tolist():
            if len(patches) == most:
                return
            try:
                patches[subject] = self._patches(subject, [at[subject] for at in points])
            except UnreadableCaseError:
                continue

    def _patches(self, subject: int, points_vox: list[np.ndarray]) -> list[Tensor]:
        case = self.places.cases[subject]
        with self.readings.of(case):
            image = self.open_image(case)
            return [torch.from_numpy(crop_with_border(image, point, self.size)) for point in points_vox]

    def _augmented(self, crops: Tensor, rng: np.random.Generator) -> Tensor:
        if self.affine is not None:
            drawn = [draw_affine(self.affine, self.size, self.spacing, rng) for _ in crops]
            crops = apply_affine_to_crops(crops, np.stack(drawn))
        if self.transform is not None:
            crops = torch.stack([augment(crop.numpy(), self.transform, rng) for crop in crops])
        return crops

    def _subjects_at(self, landmark: int) -> np.ndarray:
        """Numbers of the cases that show a landmark and all its neighbours."""
        shown = self.places.visible(landmark)
        for neighbour in self.neighbours[landmark]:
            shown &= self.places.visible(int(neighbour))
        return self.subjects[shown[self.subjects]]


def crop_size(
    patch_mm: float, spacing: Sequence[float], total_stride: Sequence[int], largest: Sequence[int]
) -> tuple[int, ...]:
    """Crop in voxels for an encoder: the landmarks' patch, but at least 2 voxels an axis at the bottleneck.

    InstanceNorm of one voxel is always zero, and features of one voxel hold no place. Multiples of the total stride.

    Args:
        patch_mm: edge of the landmarks' patches.
        spacing: (3,) voxel size in mm.
        total_stride: (3,) product of the encoder's strides.
        largest: (3,) patch size of the plans, not exceeded unless two strides do.
    """
    wanted = [
        max(2, math.ceil(patch_mm / step / stride - 1e-6)) for step, stride in zip(spacing, total_stride, strict=True)
    ]
    return tuple(
        min(count, max(2, most // stride)) * stride
        for count, stride, most in zip(wanted, total_stride, largest, strict=True)
    )
