"""How far off is a match? Errors in mm of several matchers on the same points, against truth or label centroids."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from nnunet_alice.anatomy.world import PreparedCases
from nnunet_alice.errors import InputError
from nnunet_alice.matching.interface import Matcher
from nnunet_alice.parallel import for_each_case
from nnunet_alice.phantoms import Subject, corresponding_point
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: attribute of a table of errors: how many pairs are missing from it
SKIPPED = "skipped"
#: shares of matches within these distances are reported
WITHIN_MM = (5, 10, 20)
#: pairs are worked through in tiles of so many cases A times B, so that matchers find most cases still open
_TILE = 4


@dataclass(frozen=True)
class Questions:
    """Points of case A whose counterparts in case B are known.

    Attributes:
        names: (N,) what each point is, e.g. its label.
        points_vox: (N, 3) voxels of A's preprocessed array, (z, y, x).
        truth_vox: (N, 3) voxels of B's preprocessed array.
    """

    names: Sequence
    points_vox: np.ndarray
    truth_vox: np.ndarray


#: (case A, case B) -> what is known about the pair
Asker = Callable[[str, str], Questions]


class _Pair(NamedTuple):
    case_a: str
    case_b: str

    def __str__(self) -> str:
        return f"{self.case_a} to {self.case_b}"


class CentroidQuestions:
    """Asks for the centroids of labels: the error is the distance to the centroid of the same label in B.

    The centroid of a bent organ need not lie in it, and two centroids of a label are the same anatomy only
    roughly: this measures matchers against each other, not against zero.

    Args:
        cases: segmentations of the dataset; labels are used for measuring only.
        labels: labels to ask for; None takes all but background that a case has.
    """

    def __init__(self, cases: PreparedCases, labels: Iterable[int] | None = None) -> None:
        self.cases = cases
        self.labels = None if labels is None else tuple(labels)
        self._centroids: dict[str, dict[int, np.ndarray]] = {}

    def __call__(self, case_a: str, case_b: str) -> Questions:
        """Return labels that both cases have."""
        here, there = self.centroids(case_a), self.centroids(case_b)
        shared = [label for label in here if label in there]
        return Questions(
            shared,
            np.array([here[label] for label in shared]).reshape(-1, 3),
            np.array([there[label] for label in shared]).reshape(-1, 3),
        )

    def centroids(self, case: str) -> dict[int, np.ndarray]:
        """Return the centroid of each label of a case in voxels, (z, y, x)."""
        if case not in self._centroids:
            self._centroids[case] = label_centroids(self.cases.segmentation(case), self.labels)
        return self._centroids[case]


class PhantomQuestions:
    """Asks for random body points of phantoms, whose true counterparts are known.

    Only points whose counterpart lies in the array of B are asked, so that every question has an answer. Points are
    named by whether both scans have the same kind of field of view. A pair of cases is always asked the same points.

    Args:
        cases: geometry of the preprocessed cases.
        subjects: case -> its subject.
        body_points: (case, count, rng) -> (count, 3) voxels in its body, e.g. ``body_points`` of a matcher.
        count: points drawn a pair.
        seed: of the points.
    """

    def __init__(
        self,
        cases: PreparedCases,
        subjects: dict[str, Subject],
        body_points: Callable[[str, int, np.random.Generator], np.ndarray],
        count: int = 100,
        seed: int = 0,
    ) -> None:
        self.cases, self.subjects, self.body_points, self.count, self.seed = cases, subjects, body_points, count, seed
        self._order = {case: number for number, case in enumerate(sorted(subjects))}

    def __call__(self, case_a: str, case_b: str) -> Questions:
        """Return body points of A that B shows too."""
        rng = np.random.default_rng([self.seed, self._order[case_a], self._order[case_b]])
        points = self.body_points(case_a, self.count, rng)
        truth = self.truth(case_a, case_b, points)
        shape = np.asarray(self.cases.dataset.shape(case_b))
        shown = ((truth >= 0) & (truth <= shape - 1)).all(axis=1)
        same = self.subjects[case_a].field_of_view == self.subjects[case_b].field_of_view
        name = "same field of view" if same else "other field of view"
        return Questions([name] * int(shown.sum()), points[shown], truth[shown])

    def truth(self, case_a: str, case_b: str, points_vox: np.ndarray) -> np.ndarray:
        """Return the true counterparts (N, 3), voxels of B's array, perhaps outside of it."""
        # The phantoms' own millimetres are the world's, axes reversed.
        here_mm = self.cases.world_affine(case_a).points(points_vox)[:, ::-1]
        there_mm = corresponding_point(here_mm, self.subjects[case_a], self.subjects[case_b])
        return self.cases.world_affine(case_b).points_back(there_mm[:, ::-1])


def label_centroids(segmentation: np.ndarray, labels: Iterable[int] | None = None) -> dict[int, np.ndarray]:
    """Return centroids of the labels of a segmentation.

    Args:
        segmentation: (z, y, x) whole numbers; below 1 is background or ignored.
        labels: labels to look for; None takes all.

    Returns:
        label -> (3,) centroid in voxels, for the labels that are there.
    """
    places = np.argwhere(segmentation > 0)
    values = segmentation[tuple(places.T)].astype(int)
    wanted = np.unique(values) if labels is None else [label for label in labels if (values == label).any()]
    return {int(label): places[values == label].mean(axis=0) for label in wanted}


def ordered_pairs(cases: Sequence[str], count: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
    """Return the ordered pairs of different cases: all of them, or ``count`` drawn without replacement.

    They come in tiles, so that neighbouring pairs share their cases and a matcher with a few open cases is enough.

    Args:
        cases: their names.
        count: number of pairs; None, or more than there are, gives all.
        seed: of the draw.

    Raises:
        InputError: there is no pair.
    """
    cases = sorted(cases)
    total = len(cases) ** 2
    diagonal = set(range(0, total, len(cases) + 1))
    possible = total - len(diagonal)
    if possible < 1:
        raise InputError(f"Matching needs at least two cases, but there are {len(cases)}.").about(value=len(cases))
    if count is None or count >= possible:
        numbers = np.setdiff1d(np.arange(total), np.fromiter(diagonal, dtype=int, count=len(diagonal)))
    else:
        # Draws enough to lose the diagonal and still have ``count``; neither memory nor time grow with all pairs.
        drawn = np.random.default_rng(seed).choice(total, size=count + len(diagonal), replace=False)
        numbers = np.array([number for number in drawn.tolist() if number not in diagonal][:count])
    first, second = np.divmod(numbers, len(cases))
    order = np.lexsort((second, first, second // _TILE, first // _TILE))
    return [(cases[i], cases[j]) for i, j in zip(first[order], second[order], strict=True)]


def matching_errors(
    matchers: Sequence[Matcher], pairs: Sequence[tuple[str, str]], ask: Asker, spacing_mm: Sequence[float]
) -> pd.DataFrame:
    """Ask all matchers the same questions.

    A pair that one matcher cannot work on (a damaged index, a case without registration) is left out for all, and
    the log says why.

    Args:
        matchers: matchers with different names.
        pairs: ordered pairs of cases.
        ask: gives the points of a pair.
        spacing_mm: (3,) voxel size of the preprocessed arrays, (z, y, x).

    Returns:
        one row a matcher and question: ``matcher, case_a, case_b, point, score, error_mm``. A point that a matcher
        gives is measured even where it scores ``-inf`` (no counterpart in B's body), which favours no method; the
        error is infinite where it gives none. Its ``attrs`` hold the number of pairs that were left out (``SKIPPED``).

    Raises:
        InputError: no pair could be asked.
    """
    spacing = np.asarray(spacing_mm, dtype=float)

    def measure(pair: _Pair) -> pd.DataFrame:
        questions = ask(*pair)
        answers = [matcher.match(*pair, questions.points_vox) for matcher in matchers]
        tables = []
        for matcher, matches in zip(matchers, answers, strict=True):
            error_mm = np.linalg.norm((matches.points_vox - questions.truth_vox) * spacing, axis=1)
            columns = {
                "matcher": matcher.name,
                "case_a": pair.case_a,
                "case_b": pair.case_b,
                "point": list(questions.names),
                "score": matches.scores,
                "error_mm": np.where(np.isfinite(error_mm), error_mm, np.inf),
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    outcomes = for_each_case(measure, [_Pair(*pair) for pair in pairs], doing="Matching")
    tables = [table for table in outcomes.results.values() if len(table)]
    skipped = len(outcomes.failed)
    if not tables:
        raise InputError(
            f"None of {counted(len(pairs), 'pair')} could be asked ({skipped} failed); see the messages above."
        ).about(value=skipped)
    if skipped:
        logger.warning("%d of %d pairs were left out.", skipped, len(pairs))
    errors = pd.concat(tables, ignore_index=True)
    errors.attrs[SKIPPED] = skipped
    return errors


def summarise(errors: pd.DataFrame, by: Sequence[str] = ("matcher",)) -> pd.DataFrame:
    """Return one row a group: number of points, share matched, mean, median and 90th percentile in mm, shares within.

    A match is what scores above ``-inf``. A question to which no point was given counts as infinitely wrong in median,
    percentile and shares; the mean is that of the others.

    Args:
        errors: from :func:`matching_errors`.
        by: columns to group by, e.g. ``("matcher", "point")``.
    """
    rows = []
    for key, group in errors.groupby(list(by), sort=False):
        error = group["error_mm"].to_numpy()
        given = np.isfinite(error)
        row = dict(zip(by, key, strict=True)) | {
            "points": len(error),
            "matched": (group["score"] > -np.inf).mean(),
            "mean_mm": error[given].mean() if given.any() else np.inf,
            "median_mm": _quantile(error, 0.5),
            "p90_mm": _quantile(error, 0.9),
        }
        rows.append(row | {f"within_{limit}_mm": (error <= limit).mean() for limit in WITHIN_MM})
    return pd.DataFrame(rows)


def _quantile(error: np.ndarray, share: float) -> float:
    """Return the quantile by linear interpolation that knows infinities (numpy's gives NaN between two of them)."""
    place = share * (len(error) - 1)
    ordered = np.sort(error)
    below, above = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    return float(below if below == above else below + (above - below) * (place % 1))
