"""Which matcher finds the same anatomy? Asked of all in the same way, on the images themselves, without labels.

Scores of different matchers cannot be compared, and that points come back says little of an affine map, which always
brings them back. So all matchers are asked for the counterparts of the same points, and the surroundings of each
counterpart are compared with those of its point: a correlation of two blocks of the coarse pictures of the cases. They
span about a quarter of the body: enough to tell one place from another that merely has the same tissue.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.errors import AliceError
from nnunet_alice.matching.interface import Matcher, Matches

logger = logging.getLogger(__name__)

#: kept in the anatomy folder of a dataset
EVIDENCE_FILE = "evidence.json"
#: pairs of cases, and points a pair, that are asked
PAIRS, POINTS = 40, 50
#: half of the block's edge, as a share of the edge of a cube that is as large as the body
_REACH = 0.125
#: samples along an edge of the block
_SAMPLES = 7


@dataclass(frozen=True)
class Evidence:
    """What one matcher's answers look like.

    Attributes:
        matcher: its name.
        likeness: mean correlation of the surroundings of a point and of its counterpart, in [0, 1]. Points that a
            matcher finds outside of the other case are left out. A case that the matcher does not know counts 0.
        answered: share of all points that got a counterpart in the body.
        points: number of points that were compared.
    """

    matcher: str
    likeness: float
    answered: float
    points: int


def measure_evidence(
    matchers: Sequence[Matcher], geometry: Callable[[str], CaseGeometry], pairs: int = PAIRS, seed: int = 0
) -> list[Evidence]:
    """Ask all matchers for the counterparts of the same points, and look at what they found.

    Args:
        matchers: matchers of one dataset.
        geometry: gives the geometry of a case.
        pairs: ordered pairs of cases, drawn among all that any of the matchers knows. One that cannot be read is left
            out for all of them.
        seed: of pairs and points.

    Returns:
        evidence of each matcher, in their order.
    """
    cases = sorted(set().union(*(matcher.cases for matcher in matchers)))
    rng = np.random.default_rng(seed)
    likeness, answered = [np.zeros((len(matchers), 0))], [np.zeros((len(matchers), 0))]
    for _ in range(pairs):
        case_a, case_b = (cases[i] for i in rng.choice(len(cases), 2, replace=False))
        knows = np.array([case_a in matcher.cases and case_b in matcher.cases for matcher in matchers])
        try:
            here, there = geometry(case_a), geometry(case_b)
            points = here.body_points(POINTS, rng)
            answers = [
                matcher.match(case_a, case_b, points) if known else None
                for matcher, known in zip(matchers, knows, strict=True)
            ]
        except AliceError as error:
            logger.warning("%s to %s is not compared: %s", case_a, case_b, error)
            continue
        found = np.stack([_is_answer(answer, len(points)) for answer in answers])
        # A point that the other case may not show: whoever answers all the same would only gain.
        asked = found[knows].all(axis=0)
        alike = np.zeros((len(matchers), int(asked.sum())))
        for row, answer in zip(alike, answers, strict=True):
            if answer is not None:
                row[:] = likeness_of_places(here, points[asked], there, answer.points_vox[asked])
        likeness.append(alike)
        answered.append(found.astype(float))
    alike, found = (np.concatenate(parts, axis=1) for parts in (likeness, answered))
    return [
        Evidence(matcher.name, _mean(alike[number]), _mean(found[number]), alike.shape[1])
        for number, matcher in enumerate(matchers)
    ]


def _is_answer(matches: Matches | None, count: int) -> np.ndarray:
    """Return which points got a counterpart in the body, (N,) bool; none of a matcher that does not know the cases."""
    if matches is None:
        return np.zeros(count, dtype=bool)
    return np.isfinite(matches.scores) & np.isfinite(matches.points_vox).all(axis=1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def likeness_of_places(
    here: CaseGeometry, points_vox: np.ndarray, there: CaseGeometry, found_vox: np.ndarray
) -> np.ndarray:
    """Return how much the surroundings of each place look like those of its counterpart.

    Args:
        here: geometry of the one case.
        points_vox: (N, 3) voxels of its preprocessed array, (z, y, x).
        there: geometry of the other case.
        found_vox: (N, 3) voxels of the other's.

    Returns:
        (N,) correlations, those below 0 as 0; 0 also where one of the two shows nothing.
    """
    sizes_mm3 = [case.body_cells * np.prod(case.grid_spacing_mm) for case in (here, there)]
    reach_mm = _REACH * float(np.mean(sizes_mm3)) ** (1 / 3)
    edge = np.linspace(-reach_mm, reach_mm, _SAMPLES)
    offsets_mm = np.stack(np.meshgrid(edge, edge, edge, indexing="ij"), axis=-1).reshape(-1, 3)
    ours, theirs = _surroundings(here, points_vox, offsets_mm), _surroundings(there, found_vox, offsets_mm)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    return np.maximum(0.0, np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 1e-6))


def _surroundings(case: CaseGeometry, points_vox: np.ndarray, offsets_mm: np.ndarray) -> np.ndarray:
    """Return (N, K) picture at K offsets around N points, less its mean; beyond the array its border goes on."""
    places_mm = (np.asarray(points_vox) * case.spacing)[:, None] + offsets_mm
    cells = (places_mm - case.grid_origin_mm) / case.grid_spacing_mm
    values = map_coordinates(case.image, cells.reshape(-1, 3).T, np.float32, order=1, mode="nearest")
    values = values.reshape(len(points_vox), len(offsets_mm))
    return values - values.mean(axis=1, keepdims=True)
