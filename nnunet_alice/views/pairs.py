"""Pairs of points that show the same anatomy in two cases: where the two views of a pair are cropped."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nnunet_alice.cropping import share_inside
from nnunet_alice.errors import InputError
from nnunet_alice.matching.interface import GeometryMatcher, Matcher
from nnunet_alice.views.readings import Readings

#: points matched at once; the first acceptable one is taken, so that most draws need one small batch
_DRAWS_AT_ONCE = 10
#: points drawn for one pair of cases (the paper's number), and cases B tried for one case A
_MAX_DRAWS, _MAX_TRIES = 100, 10
#: Share of a crop that has to lie inside its volume. The paper crops from whole-body CT and needs no such rule; in
#: tightly cropped volumes padding would otherwise tell where a view comes from.
_MIN_INSIDE = 0.5
#: largest shift between two crops of one case on every axis, as a share of the patch
_SHIFT = 0.25


@dataclass(frozen=True)
class PointPair:
    """Query point in case A and its counterpart, the anchor point, in case B.

    Attributes:
        case_a: case of the query view.
        case_b: case of the anchor view.
        point_a: (3,) voxels of A's preprocessed array, (z, y, x).
        point_b: (3,) voxels of B's preprocessed array, (z, y, x).
        score: score of the match.
        draws: how many points were drawn until this one.
        accepted: False where no draw was acceptable and both views had to come from case A.
    """

    case_a: str
    case_b: str
    point_a: np.ndarray
    point_b: np.ndarray
    score: float
    draws: int
    accepted: bool


class MatchedPairs:
    """Draws matched points of two different cases (Alice, sec. 3.1).

    A point is drawn in the body of A and matched into B; it is kept when the match scores at least the matcher's
    threshold and both crops show enough of their volumes. After 100 points (the paper's) a different B is drawn. When
    10 cases B gave nothing, or A itself cannot be matched (its registration is poor), both views come
    from A, at the same point, and the pair says so: no case is lost.

    ``readings`` knows the cases that could not be read, here or by whoever crops the views.

    Args:
        matcher: finds counterparts, and body points in any case.
        cases: cases to draw from.
        patch_size: (3,) crop size in voxels.
        shape_of: case -> (3,) shape of its preprocessed array.
        group_of: case -> group, within which B is drawn (modalities); None or empty for one group.

    Attributes:
        cases: cases to draw from, sorted.
        matched: those of them that the matcher knows and that have a counterpart case.

    Raises:
        InputError: the matcher knows fewer than two of the cases.
    """

    def __init__(
        self,
        matcher: Matcher,
        cases: Sequence[str],
        patch_size: Sequence[int],
        shape_of: Callable[[str], Sequence[int]],
        *,
        group_of: Mapping[str, str] | None = None,
    ) -> None:
        known = set(matcher.cases)
        self.cases = sorted(cases)
        self.group_of = group_of or {}
        groups: dict[str | None, list[str]] = {}
        for case in self.cases:
            if case in known:
                groups.setdefault(self.group_of.get(case), []).append(case)
        self._groups = {name: group for name, group in groups.items() if len(group) > 1 or len(groups) == 1}
        self.matched = sorted(case for group in self._groups.values() for case in group)
        if len(self.matched) < 2:
            raise InputError(
                f"Matched views need at least two cases, but only {len(self.matched)} of {len(cases)} can be matched "
                f"by the {matcher.name}; add cases, or look into the report of nnunet_alice anatomy."
            ).about(value=len(self.matched))
        self.readings = Readings()
        self.matcher = matcher
        self.patch_size = tuple(patch_size)
        self.shape_of = shape_of

    def draw(self, rng: np.random.Generator) -> PointPair:
        """Draw one pair; the same state of ``rng`` gives the same pair.

        Raises:
            UnreadableCaseError: a case was drawn that cannot be read; draw again.
        """
        case_a = self.cases[int(rng.integers(len(self.cases)))]
        group = self._groups.get(self.group_of.get(case_a), [])
        position = bisect.bisect_left(group, case_a)
        is_matched = group[position : position + 1] == [case_a]
        if is_matched:
            with self.readings.of(case_a):
                self.matcher.open(case_a)
        draws = 0
        for _ in range(_MAX_TRIES if is_matched else 0):
            other = int(rng.integers(len(group) - 1))
            case_b = group[other + (other >= position)]
            with self.readings.of(case_b):
                self.matcher.open(case_b)
            for _ in range(0, _MAX_DRAWS, _DRAWS_AT_ONCE):
                points = self._body_points(case_a, _DRAWS_AT_ONCE, rng)
                matches = self.matcher.match(case_a, case_b, points)
                good = (matches.scores >= self.matcher.threshold) & self._shows_enough(case_a, points)
                good[good] = self._shows_enough(case_b, matches.points_vox[good])
                if good.any():
                    first = int(np.argmax(good))
                    return PointPair(
                        case_a,
                        case_b,
                        points[first],
                        matches.points_vox[first],
                        float(matches.scores[first]),
                        draws + first + 1,
                        True,
                    )
                draws += _DRAWS_AT_ONCE
        point = self._body_points(case_a, 1, rng)[0]
        return PointPair(case_a, case_a, point, point, 1.0, draws, False)

    def _body_points(self, case: str, count: int, rng: np.random.Generator) -> np.ndarray:
        with self.readings.of(case):
            return self.matcher.body_points(case, count, rng)

    def _shows_enough(self, case: str, points: np.ndarray) -> np.ndarray:
        with self.readings.of(case):
            shape = self.shape_of(case)
        return share_inside(points, shape, self.patch_size) >= _MIN_INSIDE


class DrawsBodyPoints(Protocol):
    """Anything that knows where the bodies of cases are."""

    def body_points(self, case: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw (count, 3) points in the body of a case, voxels, (z, y, x)."""
        ...


class SameVolumePairs:
    """Both views come from one volume, two overlapping crops: no matching is needed.

    Args:
        points: gives body points.
        cases: cases to draw from.
        patch_size: (3,) crop size in voxels.
    """

    def __init__(self, points: DrawsBodyPoints, cases: Sequence[str], patch_size: Sequence[int]) -> None:
        self.cases = sorted(cases)
        if not self.cases:
            raise InputError("No case to draw views from; look into the report of nnunet_alice anatomy.")
        self.readings = Readings()
        self.points = points
        self.reach = np.asarray(patch_size) * _SHIFT

    def draw(self, rng: np.random.Generator) -> PointPair:
        """Draw one pair; the same state of ``rng`` gives the same pair.

        Raises:
            UnreadableCaseError: a case was drawn that cannot be read; draw again.
        """
        case = self.cases[int(rng.integers(len(self.cases)))]
        with self.readings.of(case):
            point = self.points.body_points(case, 1, rng)[0]
        shifted = point + rng.uniform(-self.reach, self.reach)
        return PointPair(case, case, point, shifted, 1.0, 1, True)


class RandomPairs:
    """Two views at random points of the body, of different cases where there are two: for losses of each view alone.

    Args:
        bodies: gives body points; nothing is matched.
        cases: cases to draw from.

    Raises:
        InputError: there is no case.
    """

    def __init__(self, bodies: GeometryMatcher, cases: Sequence[str]) -> None:
        if not cases:
            raise InputError("There is no case to crop from; look at the messages above about cases left out.")
        self.cases = sorted(cases)
        self.readings = Readings()
        self.bodies = bodies

    def draw(self, rng: np.random.Generator) -> PointPair:
        """Draw two points; the same state of ``rng`` gives the same ones.

        Raises:
            UnreadableCaseError: a case was drawn that cannot be read; draw again.
        """
        chosen = rng.choice(len(self.cases), 2, replace=len(self.cases) < 2)
        case_a, case_b = (self.cases[index] for index in chosen)
        points = []
        for case in (case_a, case_b):
            with self.readings.of(case):
                points.append(self.bodies.body_points(case, 1, rng)[0])
        point_a, point_b = points
        return PointPair(case_a, case_b, point_a, point_b, score=float("nan"), draws=1, accepted=False)


def matching_metrics(pairs: Sequence[PointPair]) -> dict[str, float]:
    """Return how matching went: mean score, share accepted at the first draw, share that fell back to one case.

    Empty for no pairs.
    """
    if not pairs:
        return {}
    return {
        "match_score": float(np.mean([pair.score for pair in pairs])),
        "accepted_at_first_draw": float(np.mean([pair.draws == 1 for pair in pairs])),
        "unmatched_pairs": float(np.mean([not pair.accepted for pair in pairs])),
    }
