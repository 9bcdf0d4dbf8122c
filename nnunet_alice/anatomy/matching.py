"""The one interface for anatomical matching: points in case A, cases A and B -> points in B and scores."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Matches:
    """Counterparts of N points.

    Attributes:
        points_vox: (N, 3) float64, counterparts in voxels of B's preprocessed array, (z, y, x), sub-voxel.
        scores: (N,) float64, similarity of each match, at most 1; ``-inf`` where B has no counterpart.
    """

    points_vox: np.ndarray
    scores: np.ndarray


class Matcher(Protocol):
    """Finds anatomical counterparts between cases of one preprocessed dataset.

    A matcher is opened once and asked many times, also in forked or spawned workers: it opens what it needs of a
    case when asked and keeps a bounded number of cases, so that memory does not grow with the dataset.

    Attributes:
        name: provider shown in logs: ``atlas``, ``embedding``, ``same volume``, ``relative position``.
        threshold: matches that score below it are not to be trusted.
        cases: names of the cases that can be matched, sorted.
    """

    name: str
    threshold: float
    cases: tuple[str, ...]

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Counterparts in ``case_b`` of ``points_vox`` (N, 3), voxels of ``case_a``'s preprocessed array, (z, y, x)."""
        ...

    def body_points(self, case: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``count`` points uniformly in the body of ``case``: (count, 3) float64 voxels, (z, y, x)."""
        ...
