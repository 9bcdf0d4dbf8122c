"""A match agreed upon by its neighbours: anatomy deforms smoothly, errors of single matches do not.

Every point is matched together with six points around it; a locally affine map through their counterparts, in which
counterparts far from the others count little, says where the point itself goes. Deviation from Yan et al. (TMI 2022),
who take every match as it is.
"""

from collections.abc import Callable

import numpy as np

from nnunet_alice.matching.interface import Matches

#: neighbours lie so many grid steps before and behind the point on each axis
REACH_STEPS = 1.5
#: pulls the map towards a plain shift; in steps squared, beside 2 * 1.5^2 from the neighbours
_RIDGE = 0.5
_ROUNDS = 3


def agreed_matches(
    match: Callable[[np.ndarray], Matches], points_vox: np.ndarray, step_mm: float, spacing_mm: np.ndarray
) -> Matches:
    """Match points and let their neighbours correct them.

    Args:
        match: matches (M, 3) voxels one by one.
        points_vox: (N, 3) voxels, (z, y, x).
        step_mm: step of the grid that is searched.
        spacing_mm: (3,) voxel size of both cases.

    Returns:
        corrected counterparts, with the scores of the points' own matches; what has no counterpart keeps none.
    """
    spacing_mm = np.asarray(spacing_mm, dtype=float)
    points_vox = np.asarray(points_vox, dtype=float).reshape(-1, 3)
    steps = np.concatenate([np.zeros((1, 3)), REACH_STEPS * np.eye(3), -REACH_STEPS * np.eye(3)])
    around_mm = steps * step_mm
    asked = points_vox[:, None] + around_mm / spacing_mm
    found = match(asked.reshape(-1, 3))
    there_mm = found.points_vox.reshape(-1, len(steps), 3) * spacing_mm
    scores = found.scores.reshape(-1, len(steps))[:, 0]
    answered = np.isfinite(there_mm).all(axis=2)
    # Shifts, of which a plain translation would make one: the map is fitted to how they differ.
    shifts = np.where(answered[..., None], there_mm - around_mm, 0)
    agreed_mm = _robust_affine(shifts, answered, steps, step_mm)
    own = answered[:, 0]
    return Matches(np.where(own[:, None], agreed_mm, np.nan) / spacing_mm, scores)


def _robust_affine(shifts: np.ndarray, answered: np.ndarray, steps: np.ndarray, scale_mm: float) -> np.ndarray:
    """Return the value at the middle, (N, 3), of affine maps through (N, K, 3) samples at (K, 3) steps.

    By reweighted least squares: a sample that lies ``scale_mm`` off counts half.
    """
    design = np.concatenate([np.ones((len(steps), 1)), steps], axis=1)
    ridge = np.diag([1e-9, _RIDGE, _RIDGE, _RIDGE])
    expected = _median(shifts, answered)[:, None]
    for _ in range(_ROUNDS):
        off = np.linalg.norm(shifts - expected, axis=2)
        weights = answered / (1 + (off / scale_mm) ** 2)
        normal = np.einsum("ki,qk,kj->qij", design, weights, design) + ridge
        fitted = np.linalg.solve(normal, np.einsum("ki,qk,qkc->qic", design, weights, shifts))
        expected = design @ fitted
    return fitted[:, 0]


def _median(shifts: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Return the median of the samples that there are, (N, 3); 0 where there is none."""
    known = np.where(answered[..., None], shifts, np.nan)
    known[~answered.any(axis=1)] = 0
    return np.nanmedian(known, axis=1)
