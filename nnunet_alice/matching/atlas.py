"""Matching through the atlas: a counterpart is the point with the same atlas coordinates."""

import logging

import numpy as np

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import PreparedAtlas
from nnunet_alice.anatomy.atlas_files import OK, AtlasFiles
from nnunet_alice.anatomy.deformation import Deformation
from nnunet_alice.anatomy.registration import MIN_QUALITY
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import NotPreparedError
from nnunet_alice.matching.interface import GeometryMatcher, Matches, usable_cases

logger = logging.getLogger(__name__)


def through_atlas(
    points_mm: np.ndarray, from_a: tuple[np.ndarray, Deformation], from_b: tuple[np.ndarray, Deformation]
) -> np.ndarray:
    """Return the points of case B, (N, 3) mm, at the same place of the atlas as points (N, 3) of case A.

    With the affine map A and the deformation D of each case: ``p_B = D_B^-1 A_B^-1 A_A D_A p``.

    Args:
        points_mm: (z, y, x) mm of case A.
        from_a: affine map (4, 4) from A to the atlas, and the deformation of A.
        from_b: the same of B.
    """
    (affine_a, deformation_a), (affine_b, deformation_b) = from_a, from_b
    to_b = Affine(np.linalg.solve(affine_b, affine_a))
    return deformation_b.back(to_b.points(deformation_a.at(points_mm)))


class AtlasMatcher(GeometryMatcher):
    """Counterpart = the point of B with the same atlas coordinates; implements ``Matcher``.

    The score is the lower quality of the two registrations. It is ``-inf`` where the counterpart lies outside of B's
    array or farther than a grid cell from B's body. Cases with a poor or failed registration are not in ``cases``.

    Args:
        dataset: the preprocessed dataset.

    Raises:
        NotPreparedError: no atlas was prepared, or too few cases are registered well; the message names the command.
    """

    name = "atlas"
    threshold = MIN_QUALITY

    def __init__(self, dataset: PreprocessedDataset) -> None:
        command = f"{dataset.anatomy_command} --method atlas"
        report = AtlasFiles(dataset).finished_report()
        self.atlas = PreparedAtlas.open(dataset, report)
        existing = dataset.cases()
        good = [case for case in existing if case in report.records and report.records[case].status == OK]
        missing = [case for case in existing if case not in report.records]
        if missing:
            logger.warning(
                "%d of %d cases are not registered to the atlas yet (e.g. %s) and are left out; run: %s",
                len(missing), len(existing), missing[0], command,
            )  # fmt: skip
        self.fingerprint = report.fingerprint
        good = usable_cases(good, lambda case: self.atlas.known_affine(case) is not None, "registrations", command)
        if len(good) < 2:
            raise NotPreparedError(
                f"Only {len(good)} of {len(existing)} cases are registered well to the atlas {report.atlas_case}; "
                f"look at {self.atlas.files.picture} and name a better atlas: {command} --atlas CASE"
            ).about(
                case=report.atlas_case,
                path=self.atlas.files.picture,
                value=len(good),
                command=f"{command} --atlas CASE",
            )
        if report.shortfall:
            logger.warning("%s", report.shortfall)
        super().__init__(dataset, good)
        self._quality = {case: report.records[case].quality for case in good}

    def affine(self, case: str) -> np.ndarray:
        """Return `PreparedAtlas.affine` of a case."""
        return self._recent(("affine", case), lambda: self.atlas.affine(case))

    def deformation(self, case: str) -> Deformation:
        """Return `PreparedAtlas.deformation` of a case."""
        return self._recent(("deformation", case), lambda: self.atlas.deformation(case))

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Return counterparts in ``case_b`` of points (N, 3), voxels of ``case_a``."""
        points_mm = np.asarray(points_vox, dtype=np.float64) * self.dataset.spacing
        a, b = ((self.affine(case), self.deformation(case)) for case in (case_a, case_b))
        found = through_atlas(points_mm, a, b) / self.dataset.spacing
        score = min(self._quality[case_a], self._quality[case_b])
        return Matches(found, np.where(self.geometry(case_b).in_body(found), score, -np.inf))

    def open(self, case: str) -> None:
        """Read geometry and registration of a case, its deformation too: whoever crops it may ask for its regions."""
        super().open(case)
        self.affine(case)
        self.deformation(case)
