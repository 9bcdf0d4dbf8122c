"""Batches of DrasCLR: one landmark in many subjects, two augmented views of each, and the patches around it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from nnunet_alice.dataset import LazyImage
from nnunet_alice.errors import InputError
from nnunet_alice.matching.landmark_places import LandmarkPlaces
from nnunet_alice.views.affine_crops import REFERENCE_RANGE, AffineRange, apply_affine_to_crops, draw_affine
from nnunet_alice.views.augmentation import augmented
from nnunet_alice.views.batch import Batch
from nnunet_alice.views.border_crops import crops_with_border
from nnunet_alice.views.readings import Readings, UnreadableCaseError


def noise_and_gamma(
    probability: float = 0.25, *, gamma: tuple[float, float] = (0.7, 1.5), restored: bool = True
) -> BasicTransform:
    """Return Gaussian noise and contrast (gamma), each with ``probability`` (DrasCLR, Section 4.2).

    The reference adds up to 50 HU, 4 % of its range of intensities. Ours are nnU-Net's normalised ones (about zero
    mean, unit variance): the noise has a standard deviation of up to 0.1 of theirs.

    Args:
        probability: of each.
        gamma: range of the exponent; the reference's is (0.5, 4.5).
        restored: gamma leaves mean and deviation as they are; the reference restores nothing.
    """
    contrast = GammaTransform(
        gamma=gamma, p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=int(restored)
    )
    return ComposeTransforms(
        [
            RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.1)), apply_probability=probability),
            RandomTransform(contrast, apply_probability=probability),
        ]
    )


@dataclass(frozen=True)
class LandmarkBatch(Batch):
    """One landmark in B subjects, each shown by one of the ``cases``.

    ``views`` ((2 + k) B, C, *size) are B first views, their B second views, and B patches at each neighbour.

    Attributes:
        landmark: its number.
        location: (3,) float32, of the landmark.
        neighbour_locations: (k, 3) float32.
        subjects: (B,) int64, number of the subject of each case.
    """

    landmark: int
    location: Tensor
    neighbour_locations: Tensor
    subjects: Tensor


class Visit(NamedTuple):
    """Where a batch stands in the order of visits.

    Attributes:
        landmark: number of the landmark.
        round: number of the round through all landmarks.
        step: how many batches of this visit come before it.
        next: number of the first batch of the next visit.
    """

    landmark: int
    round: int
    step: int
    next: int


class LandmarkCrops:
    """Makes batches of one landmark; callable as ``make_batch`` of ``NumberedBatches``.

    Batches come in visits. As in the reference's training loop, a visit stays at one landmark until all its subjects
    were shown once. The negatives of a batch are then keys of the batches just before it. A round
    visits every landmark once, each round in an order of its own. All ranks are at the same landmark, each with
    its share of the subjects. Where not even one batch of all ranks can be filled, every rank draws for itself.

    Subjects are drawn among those with a case that shows the landmark and its neighbours; of several cases one is
    drawn. Where these are fewer than B, the batch is smaller, see `size_of_batch`. Others take the place of those that
    cannot be read; where too few of a landmark's are left, the batch shows the next landmark instead.

    Args:
        places: where landmarks lie in the registered cases.
        cases: cases to draw from; those that are not registered are left out.
        open_image: case -> (C, z, y, x) array, read lazily.
        size: (3,) crop size in voxels.
        spacing: (3,) voxel size in mm.
        batch_size: B, of this rank.
        subject_of: case -> name of its subject; cases that are missing there are subjects of their own.
        neighbours: k, 0 for none.
        seed: of the order of landmarks and subjects, the same on all ranks.
        together: subjects in a batch of all ranks; None is B.
        before: subjects of the ranks before this one.
        max_stay: batches of a visit at most; None for no limit.
        affine: limits of the affine augmentation, None for none.
        transform: intensity augmentation of each patch, None for none.
        min_subjects: landmarks that fewer subjects show (with their neighbours) are left out.

    Attributes:
        landmarks: (L,) numbers of the landmarks that are visited.
        stays: (L,) batches of a visit to each.

    Raises:
        InputError: no landmark is shown by enough subjects, or there are fewer than k + 1 landmarks.
    """

    def __init__(
        self,
        places: LandmarkPlaces,
        cases: Sequence[str],
        open_image: Callable[[str], LazyImage],
        size: Sequence[int],
        spacing: Sequence[float],
        batch_size: int,
        *,
        subject_of: Mapping[str, str] | None = None,
        neighbours: int = 2,
        seed: int = 0,
        together: int | None = None,
        before: int = 0,
        max_stay: int | None = None,
        affine: AffineRange | None = REFERENCE_RANGE,
        transform: BasicTransform | None = None,
        min_subjects: int = 2,
    ) -> None:
        self.places = places
        self.open_image = open_image
        self.size = tuple(int(n) for n in size)
        self.spacing = tuple(spacing)
        self.batch_size = batch_size
        self.together = batch_size if together is None else together
        self.before = before
        self.seed = seed
        self.affine = affine
        self.transform = transform
        self.min_subjects = min_subjects
        self.readings = Readings()
        names = [(subject_of or {}).get(case, case) for case in places.cases]
        self._subject_of = np.unique(names, return_inverse=True)[1]
        self._drawn_from = np.isin(places.cases, list(cases))
        count = len(places.landmarks)
        self.neighbours = (
            places.landmarks.neighbours(neighbours) if neighbours else np.empty((count, 0), dtype=np.int64)
        )
        shown = np.array([len(self._subjects_at(number)) for number in range(count)])
        self.landmarks = np.flatnonzero(shown >= min_subjects)
        if not len(self.landmarks):
            raise InputError(
                f"None of the {count} landmarks is shown, with its {neighbours} neighbours, by {min_subjects} subjects "
                f"of the {int(self._drawn_from.sum())} registered cases; look at landmarks.png, add cases, or choose "
                "a different --roi with nnunet_alice anatomy."
            ).about(option="--roi", value=min_subjects, command="nnunet_alice anatomy")
        self.stays = np.clip(shown[self.landmarks] // self.together, 1, max_stay)

    def visit_of(self, number: int) -> Visit:
        """Return where batch ``number`` stands in the order of visits."""
        round_number, place = divmod(number, int(self.stays.sum()))
        order = np.random.default_rng([self.seed, round_number]).permutation(len(self.landmarks))
        ends = np.cumsum(self.stays[order])
        index = int(np.searchsorted(ends, place, side="right"))
        chosen = order[index]
        step = place - int(ends[index] - self.stays[chosen])
        return Visit(int(self.landmarks[chosen]), round_number, step, number - step + int(self.stays[chosen]))

    def __call__(self, number: int, rng: np.random.Generator) -> LandmarkBatch:
        """Return a batch of the landmark that is visited at this number."""
        landmark, cases, patches = self._first_readable(number, rng)
        around = self.neighbours[landmark]
        by_place = list(zip(*patches, strict=True))
        crops = torch.stack([patch for found in (by_place[0], *by_place) for patch in found])
        locations = torch.from_numpy(self.places.landmarks.locations)
        return LandmarkBatch(
            views=self._augmented(crops, rng),
            cases=[self.places.cases[case] for case in cases],
            landmark=landmark,
            location=locations[landmark].clone(),
            neighbour_locations=locations[around],
            subjects=torch.from_numpy(self._subject_of[cases]),
        )

    def _first_readable(self, number: int, rng: np.random.Generator) -> tuple[int, list[int], list[list[Tensor]]]:
        """Return the landmark of batch ``number``, its cases and their patches; at a later landmark, if need be.

        Raises:
            InputError: there is none.
        """
        visit = self.visit_of(number)
        for _ in range(2 * len(self.landmarks)):  # from anywhere in a round to the end of the next
            patches = self._read(visit, rng)
            if len(patches) >= min(self.min_subjects, self.batch_size):
                return visit.landmark, list(patches), list(patches.values())
            visit = self.visit_of(visit.next)
        raise InputError(
            f"No landmark is shown by {self.min_subjects} subjects of the {int(self._drawn_from.sum())} cases that can "
            f"be read; the first that cannot: {self.readings.first}"
        ).about(value=self.min_subjects)

    def _read(self, visit: Visit, rng: np.random.Generator) -> dict[int, list[Tensor]]:
        """Return patches at a landmark and its neighbours, of one case each of up to B subjects."""
        there = self._subjects_at(visit.landmark)
        if len(there) < self.together:
            chosen = rng.choice(there, size=size_of_batch(len(there), self.batch_size), replace=False)
        else:
            order = np.random.default_rng([self.seed, visit.round, visit.landmark]).permutation(there)
            first = visit.step * self.together + self.before
            chosen = order[first : first + self.batch_size]
        points = [self.places.points_vox(place) for place in (visit.landmark, *self.neighbours[visit.landmark])]
        cases = self._cases_at(visit.landmark)
        patches: dict[int, list[Tensor]] = {}
        self._add_patches(patches, chosen, cases, len(chosen), points, rng)
        if len(patches) < len(chosen):
            others = rng.permutation(np.setdiff1d(there, chosen))
            self._add_patches(patches, others, cases, len(chosen), points, rng)
        return dict(islice(patches.items(), size_of_batch(len(patches), self.batch_size)))

    def _add_patches(
        self,
        patches: dict[int, list[Tensor]],
        subjects: np.ndarray,
        cases: np.ndarray,
        most: int,
        points: list[np.ndarray],
        rng: np.random.Generator,
    ) -> None:
        """Add the patches of the subjects that can be read, one after the other, until there are ``most``."""
        for subject in subjects:
            if len(patches) == most:
                return
            for case in rng.permutation(cases[self._subject_of[cases] == subject]).tolist():
                try:
                    patches[case] = self._patches(case, [at[case] for at in points])
                except UnreadableCaseError:
                    continue
                break

    def _patches(self, number: int, points_vox: list[np.ndarray]) -> list[Tensor]:
        case = self.places.cases[number]
        with self.readings.of(case):
            image = self.open_image(case)
            return [torch.from_numpy(crop) for crop in crops_with_border(image, points_vox, self.size)]

    def _augmented(self, crops: Tensor, rng: np.random.Generator) -> Tensor:
        if self.affine is not None:
            drawn = [draw_affine(self.affine, self.size, self.spacing, rng) for _ in crops]
            crops = apply_affine_to_crops(crops, np.stack(drawn))
        if self.transform is not None:
            crops = augmented((crop.numpy() for crop in crops), self.transform, rng)
        return crops

    def _cases_at(self, landmark: int) -> np.ndarray:
        """Return numbers of the cases to draw from that show a landmark and all its neighbours."""
        shown = self._drawn_from & self.places.visible(landmark)
        for neighbour in self.neighbours[landmark]:
            shown &= self.places.visible(int(neighbour))
        return np.flatnonzero(shown)

    def _subjects_at(self, landmark: int) -> np.ndarray:
        """Return numbers of the subjects of these cases, ascending."""
        return np.unique(self._subject_of[self._cases_at(landmark)])


def size_of_batch(subjects: int, largest: int) -> int:
    """Return how many of these subjects a batch shows: ``largest``, or a power of two below.

    Every size is compiled for itself, and cuDNN looks for its fastest kernels again; few sizes keep that short.
    """
    return largest if subjects >= largest else 2 ** (subjects.bit_length() - 1) if subjects else 0


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
