"""From which score on a match by embedding can be trusted: measured on the dataset itself, without labels."""

import logging
import math
from dataclasses import asdict, dataclass

import numpy as np

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.matching.index import IndexStore
from nnunet_alice.matching.interface import Matcher

logger = logging.getLogger(__name__)

#: Raised when the rule of the threshold changes: what older ones measured is measured again.
VERSION = 2
#: pairs of cases, and points a pair, that are asked
_PAIRS, _POINTS = 60, 100
#: share of the matches that come back which the threshold turns away
_TURNED_AWAY = 0.05
#: of the matches that are trusted, at least this share comes back; otherwise a higher score is asked for
_RELIABLE = 0.8
#: where less than this share of all matches could be trusted, none is
_MIN_ACCEPTED = 0.1


@dataclass(frozen=True)
class Calibration:
    """Threshold of scores and what it was learned from.

    Points are matched from A to B and back. Those that come back are mostly right; those that do not are mostly wrong
    or have no counterpart in B. The threshold is a low quantile of the scores of the former. It is as much higher as it
    takes for most of the matches above it to come back. An embedding that finds nothing has no such score, and none of
    its matches is trusted.

    Deviation: Alice's fixed 0.7 fits the cosines of its own matching model. Ours lie higher or lower depending on data
    and length of training, so that a fixed number would turn away everything or nothing.

    Attributes:
        threshold: matches that score below are not to be trusted; infinite where none is.
        returned: share of the points that came back.
        accepted: share of all points that score at least the threshold.
        returned_of_accepted: share of those that came back; 0 where none is accepted.
        tolerance_mm: a point that ends within this distance of its start has come back.
        points: number of points asked.
    """

    threshold: float
    returned: float
    accepted: float
    returned_of_accepted: float
    tolerance_mm: float
    points: int

    @property
    def finds_nothing(self) -> bool:
        """Whether no match is to be trusted."""
        return math.isinf(self.threshold)


def calibrate(matcher: Matcher, spacing_mm: tuple[float, ...], tolerance_mm: float) -> Calibration:
    """Match points there and back between random pairs of cases.

    Args:
        matcher: knows at least two cases.
        spacing_mm: (3,) voxel size of the preprocessed arrays, (z, y, x).
        tolerance_mm: how close to its start a point has to end.
    """
    rng = np.random.default_rng(0)
    scores, off_mm = [], []
    for _ in range(_PAIRS):
        case_a, case_b = (matcher.cases[i] for i in rng.choice(len(matcher.cases), 2, replace=False))
        points = matcher.body_points(case_a, _POINTS, rng)
        there = matcher.match(case_a, case_b, points)
        answered = np.isfinite(there.points_vox).all(axis=1)
        back = matcher.match(case_b, case_a, there.points_vox[answered])
        off = np.full(len(points), np.inf)
        off[answered] = np.linalg.norm((back.points_vox - points[answered]) * spacing_mm, axis=1)
        scores.append(there.scores)
        off_mm.append(off)
    calibration = calibration_of(np.concatenate(scores), np.concatenate(off_mm) <= tolerance_mm, float(tolerance_mm))
    if calibration.finds_nothing:
        logger.warning(
            "Only %.0f %% of %d points came back, and no score tells them from the others: this embedding finds "
            "nothing, and none of its matches is trusted; train longer.",
            100 * calibration.returned, calibration.points,
        )  # fmt: skip
    return calibration


def calibration_of(scores: np.ndarray, returned: np.ndarray, tolerance_mm: float) -> Calibration:
    """Return which scores to trust, of (N,) matches and whether each came back (N,), bool."""
    # the score that nearly all matches have which come back
    low = float(np.quantile(scores[returned], _TURNED_AWAY)) if returned.any() else math.inf
    threshold = max(low, _reliable_score(scores, returned))
    if (scores >= threshold).mean() < _MIN_ACCEPTED:
        return Calibration(math.inf, float(returned.mean()), 0.0, 0.0, tolerance_mm, len(scores))
    accepted = scores >= threshold
    shares = float(returned.mean()), float(accepted.mean()), float(returned[accepted].mean())
    return Calibration(threshold, *shares, tolerance_mm, len(scores))


def _reliable_score(scores: np.ndarray, returned: np.ndarray) -> float:
    """Return the lowest score from which on most of the matches come back; infinite where there is none."""
    order = np.argsort(-scores, kind="stable")
    reliable = np.cumsum(returned[order]) >= _RELIABLE * np.arange(1, len(scores) + 1)
    return float(scores[order[reliable][-1]]) if reliable.any() else math.inf


def write_calibration(store: IndexStore, calibration: Calibration, checkpoint: str) -> None:
    """Keep what was measured beside the indices of a checkpoint (its SHA-256)."""
    threshold = None if calibration.finds_nothing else calibration.threshold  # JSON knows no infinity
    content = {"version": VERSION, "checkpoint": checkpoint, **asdict(calibration), "threshold": threshold}
    write_json(store.calibration_file, content)


def read_calibration(store: IndexStore, checkpoint: str) -> Calibration | None:
    """Return what was measured with the indices of this checkpoint; None where nothing was, or otherwise."""
    path = store.calibration_file
    if not path.is_file():
        return None
    try:
        content = dict(read_json(path))
        if (content.pop("version", None), content.pop("checkpoint")) != (VERSION, checkpoint):
            return None
        threshold = content.pop("threshold")
        return Calibration(threshold=math.inf if threshold is None else threshold, **content)
    except (InputError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is not usable (%s) and is ignored.", path, error)
        return None
