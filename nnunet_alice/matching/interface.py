"""The one interface for anatomical matching: points in case A, cases A and B -> points in B and scores."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from nnunet_alice.anatomy.geometry import CaseGeometry, load_geometry
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matches:
    """Counterparts of N points.

    Attributes:
        points_vox: (N, 3) float64, counterparts in voxels of B's preprocessed array, (z, y, x), sub-voxel; NaN where
            there is no answer.
        scores: (N,) float64, similarity of each match, at most 1; ``-inf`` where B has no counterpart.
    """

    points_vox: np.ndarray
    scores: np.ndarray


class Matcher(Protocol):
    """Finds anatomical counterparts between cases of one preprocessed dataset.

    A matcher is opened once and asked many times, also in forked or spawned workers: it opens what it needs of a
    case when asked and keeps a bounded number of cases. So memory does not grow with the dataset.

    Attributes:
        name: provider shown in logs: ``atlas``, ``embedding``, ``relative position``.
        threshold: matches that score below it are not to be trusted; infinite where none is.
        cases: names of the cases that can be matched, sorted.
        why: why it was chosen among several, in a sentence; empty where there was no choice.
    """

    name: str
    threshold: float
    cases: tuple[str, ...]
    why: str

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Return counterparts in ``case_b`` of ``points_vox`` (N, 3), (z, y, x) voxels of ``case_a``'s array."""
        ...

    def body_points(self, case: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``count`` points uniformly in the body of any case: (count, 3) float64 voxels, (z, y, x)."""
        ...

    def open(self, case: str) -> None:
        """Read what :meth:`match` needs of a case; whatever is wrong with its files is raised here."""
        ...


class GeometryMatcher:
    """What matchers share that know the geometry of cases: body points, and a bounded number of opened cases.

    Pickled without what it has open, so that workers open what they need.

    Args:
        dataset: the preprocessed dataset.
        cases: names of the cases that can be matched; None for all.
        open_cases: number of opened things kept; a case takes up to 2 MB.
    """

    why = ""

    def __init__(self, dataset: PreprocessedDataset, cases: Iterable[str] | None = None, open_cases: int = 64) -> None:
        self.dataset = dataset
        self.cases = tuple(sorted(dataset.cases() if cases is None else cases))
        self._size = open_cases
        self._open: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def geometry(self, case: str) -> CaseGeometry:
        """Return the geometry of a case, computed and stored when it is missing."""
        return self._recent(("geometry", case), lambda: load_geometry(self.dataset, case))

    def body_points(self, case: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``count`` points uniformly in the body of ``case``: (count, 3) float64 voxels, (z, y, x)."""
        return self.geometry(case).body_points(count, rng)

    def body_crop(self, case: str, first_vox: np.ndarray, patch_size: Sequence[int]) -> np.ndarray:
        """Return which voxels of a crop show the body, see :meth:`CaseGeometry.body_crop`."""
        return self.geometry(case).body_crop(first_vox, patch_size)

    def open(self, case: str) -> None:
        """Read what matching needs of a case, and keep it for a while."""
        self.geometry(case)

    def _recent(self, key: tuple[str, str], make: Callable[[], Any]) -> Any:
        """Return what was made for ``key``, if it is still among the most recently used."""
        if key not in self._open:
            self._open[key] = make()
            if len(self._open) > self._size:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}


def usable_cases(cases: list[str], is_usable: Callable[[str], bool], what: str, command: str) -> list[str]:
    """Return the cases whose prepared files can be used; any other would end a run when it is drawn.

    Args:
        cases: names of cases.
        is_usable: case -> whether its file is there, whole, and made from the image as it is now.
        what: the files in plural, for progress and log: ``registrations``.
        command: what makes them again, for the log.
    """
    usable = [case for case in tqdm(cases, desc=f"Checking {what}", disable=None) if is_usable(case)]
    if len(usable) < len(cases):
        left_out = sorted(set(cases) - set(usable))
        logger.warning(
            "The %s of %d of %d cases (%s) are missing, damaged or of other images than there are now: left out; "
            "run: %s", what, len(left_out), len(cases), named(left_out), command,
        )  # fmt: skip
    return usable


def shared_cases(matchers: Sequence[Matcher]) -> list[str]:
    """Return cases that all matchers know, sorted; the log says how many are missing."""
    shared = set(matchers[0].cases).intersection(*(matcher.cases for matcher in matchers[1:]))
    known = set().union(*(matcher.cases for matcher in matchers))
    if len(shared) < len(known):
        logger.info(
            "%d of %d cases are not known to all matchers and are left out.", len(known) - len(shared), len(known)
        )
    return sorted(shared)


class RelativePositionMatcher(GeometryMatcher):
    """Baseline: the counterpart lies at the same share of B's array along each axis. Implements ``Matcher``.

    It knows nothing of how good a match is: every match in B's body scores 0, and none is to be trusted.

    Args: those of :class:`GeometryMatcher`.
    """

    name = "relative position"
    threshold = math.inf

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Return counterparts in ``case_b`` of ``points_vox`` (N, 3), (z, y, x) voxels of ``case_a``'s array."""
        there = self.geometry(case_b)
        share = (np.asarray(points_vox, dtype=np.float64) + 0.5) / self.geometry(case_a).shape
        found = share * there.shape - 0.5
        return Matches(found, np.where(there.in_body(found), 0.0, -np.inf))
