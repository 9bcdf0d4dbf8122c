"""Where the landmarks of an atlas lie in the registered cases: one affine and one shape a case, nothing a landmark."""

from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.landmarks import Landmarks
from nnunet_alice.matching.atlas import AtlasMatcher


class LandmarkPlaces:
    """Maps landmarks into many cases at once. About 150 bytes a case are held: 3 MB for 20,000 cases.

    Args:
        landmarks: landmarks of the atlas.
        cases: names of N registered cases.
        affines: (N, 4, 4), case mm -> atlas mm, (z, y, x).
        shapes: (N, 3) voxels of the cases' preprocessed arrays.
        spacing: voxel size in mm that all these arrays share.

    Raises:
        InputError: an affine is not finite or cannot be inverted.
    """

    def __init__(
        self,
        landmarks: Landmarks,
        cases: Sequence[str],
        affines: Iterable[np.ndarray],
        shapes: Iterable[Sequence[int]],
        spacing: Sequence[float],
    ) -> None:
        self.landmarks = landmarks
        self.cases = tuple(cases)
        inverse = np.stack([Affine(affine).inverse() for affine in affines])[:, :3]
        self._to_vox = inverse / np.asarray(spacing, dtype=float)[:, None]
        self._last_vox = np.asarray(list(shapes), dtype=float) - 0.5

    @classmethod
    def of_registered(cls, landmarks: Landmarks, matcher: AtlasMatcher) -> "LandmarkPlaces":
        """Places in all cases that are registered well; reads one small file a case."""
        affines, shapes = [], []
        for case in tqdm(matcher.cases, desc="Opening registrations", disable=None):
            affines.append(matcher.affine(case))
            shapes.append(_shape(matcher, case))
        return cls(landmarks, matcher.cases, affines, shapes, matcher.dataset.spacing)

    def points_vox(self, landmark: int) -> np.ndarray:
        """Where a landmark lies in every case: (N, 3) sub-voxel, (z, y, x), also outside of the array."""
        point = self.landmarks.points_mm[landmark]
        return self._to_vox[:, :, :3] @ point + self._to_vox[:, :, 3]

    def visible(self, landmark: int) -> np.ndarray:
        """Which cases show a landmark, its point lying in their array: bool (N,)."""
        points = self.points_vox(landmark)
        return np.all((points >= -0.5) & (points <= self._last_vox), axis=1)

    def seen(self) -> np.ndarray:
        """How many cases show each landmark: (L,) int64."""
        return np.array([int(self.visible(number).sum()) for number in range(len(self.landmarks))], dtype=np.int64)


def _shape(matcher: AtlasMatcher, case: str) -> Sequence[int]:
    """Shape of a case's array; of its geometry where the image cannot be opened, which is for the loader to say."""
    try:
        return matcher.dataset.shape(case)
    except (OSError, RuntimeError):
        return matcher.geometry(case).shape
