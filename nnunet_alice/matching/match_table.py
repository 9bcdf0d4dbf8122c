"""Where one point of a case lies in other cases: a table in voxels and in world millimetres."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnunet_alice.anatomy.world import NoWorldError, PreparedCases
from nnunet_alice.errors import InputError
from nnunet_alice.matching.interface import Matcher
from nnunet_alice.parallel import for_each_case
from nnunet_alice.words import counted

WORLD = ("world_x_mm", "world_y_mm", "world_z_mm")


def match_point(
    matcher: Matcher, cases: PreparedCases, case_a: str, point: Sequence[float], targets: Sequence[str], *, world: bool
) -> tuple[np.ndarray, pd.DataFrame, dict[str, str]]:
    """Match one point into many cases. A case that cannot be matched stops no other.

    Args:
        matcher: finds the counterparts.
        cases: geometry of the preprocessed cases.
        case_a: case of the point.
        point: (z, y, x) voxels of the preprocessed array, or (x, y, z) world mm (LPS) if ``world``.
        targets: cases to match into.
        world: how ``point`` is given.

    Returns:
        the point in voxels, (3,); one row a case, best score first: ``case, z_vox, y_vox, x_vox, world_x_mm,
        world_y_mm, world_z_mm, score, trusted``; and why for each case that failed. World columns are NaN where a file
        has no world coordinates.

    Raises:
        InputError: unknown cases, a damaged case of the point, or a point outside the volume.
    """
    for case in (case_a, *targets):
        if case not in matcher.cases:
            raise InputError(
                f"Case {case} cannot be matched by the {matcher.name}; it knows {counted(len(matcher.cases), 'case')}, "
                f"such as {', '.join(matcher.cases[:3])}."
            ).about(case=case)
    point_vox = np.asarray(point, dtype=float)
    if world:
        point_vox = cases.world_affine(case_a).points_back(point_vox[None])[0]
    shape = cases.dataset.shape(case_a)
    if not ((point_vox >= -0.5) & (point_vox <= np.asarray(shape) - 0.5)).all():
        raise InputError(
            f"The point lies at voxel ({', '.join(f'{v:.1f}' for v in point_vox)}) of case {case_a}, outside its "
            f"preprocessed array of {' x '.join(map(str, shape))} voxels (z, y, x)."
        ).about(case=case_a)

    def match(case: str) -> list:
        matches = matcher.match(case_a, case, point_vox[None])
        score = float(matches.scores[0])
        world_mm = _world(cases, case, matches.points_vox)
        return [case, *matches.points_vox[0], *world_mm, score, score >= matcher.threshold]

    outcomes = for_each_case(match, targets, doing="Matching")
    table = pd.DataFrame(
        list(outcomes.results.values()), columns=["case", "z_vox", "y_vox", "x_vox", *WORLD, "score", "trusted"]
    )
    return point_vox, table.sort_values("score", ascending=False, kind="stable", ignore_index=True), outcomes.failed


def _world(cases: PreparedCases, case: str, points_vox: np.ndarray) -> np.ndarray:
    """Return world position of one point, NaN where the case has none."""
    try:
        return cases.world_affine(case).points(points_vox)[0]
    except NoWorldError:
        return np.full(3, np.nan)
