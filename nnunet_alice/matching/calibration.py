"""From which score on a match by embedding can be trusted: measured on the dataset itself, without labels."""

import logging
from dataclasses import asdict, dataclass

import numpy as np

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, write_json
from nnunet_alice.matching.index import IndexStore
from nnunet_alice.matching.interface import Matcher

logger = logging.getLogger(__name__)

#: pairs of cases, and points a pair, that are asked
_PAIRS, _POINTS = 60, 100
#: share of the matches that come back which the threshold turns away
_TURNED_AWAY = 0.05


@dataclass(frozen=True)
class Trust:
    """Threshold of scores and what it was learned from.

    Points are matched from A to B and back. Those that come back are mostly right; those that do not are mostly wrong
    or have no counterpart in B. The threshold is a low quantile of the scores of the former.

    Deviation: Alice's fixed 0.7 fits the cosines of its own matching model. Ours lie higher or lower depending on data
    and length of training, so that a fixed number would turn away everything or nothing.

    Attributes:
        threshold: matches that score below are not to be trusted.
        returned: share of the points that came back.
        accepted: share of all points that score at least the threshold.
        returned_of_accepted: share of those that came back.
        tolerance_mm: a point that ends within this distance of its start has come back.
        points: number of points asked.
    """

    threshold: float
    returned: float
    accepted: float
    returned_of_accepted: float
    tolerance_mm: float
    points: int


def measure_trust(matcher: Matcher, spacing_mm: tuple[float, ...], tolerance_mm: float, seed: int = 0) -> Trust:
    """Match points there and back between random pairs of cases.

    Args:
        matcher: knows at least two cases.
        spacing_mm: (3,) voxel size of the preprocessed arrays, (z, y, x).
        tolerance_mm: how close to its start a point has to end.
        seed: of pairs and points.
    """
    rng = np.random.default_rng(seed)
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
    scores, returned = np.concatenate(scores), np.concatenate(off_mm) <= tolerance_mm
    if not returned.any():
        logger.warning("Not one of %d points came back: this embedding finds nothing; train longer.", len(scores))
        return Trust(1.0, 0.0, 0.0, 0.0, tolerance_mm, len(scores))
    threshold = float(np.quantile(scores[returned], _TURNED_AWAY))
    accepted = scores >= threshold
    return Trust(
        threshold,
        float(returned.mean()),
        float(accepted.mean()),
        float(returned[accepted].mean()),
        float(tolerance_mm),
        len(scores),
    )


def write_trust(store: IndexStore, trust: Trust, checkpoint: str) -> None:
    """Keep what was measured beside the indices of a checkpoint (its SHA-256)."""
    write_json(store.trust_file, {"checkpoint": checkpoint, **asdict(trust)})


def read_trust(store: IndexStore, checkpoint: str) -> Trust | None:
    """What was measured with the indices of this checkpoint; None where nothing was, or with another one's."""
    path = store.trust_file
    if not path.is_file():
        return None
    try:
        content = dict(read_json(path))
        return Trust(**content) if content.pop("checkpoint") == checkpoint else None
    except (InputError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is not usable (%s) and is ignored.", path, error)
        return None
