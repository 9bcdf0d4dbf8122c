"""Matching through the atlas: a counterpart is the point with the same atlas coordinates."""

import logging

import numpy as np

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas_files import OK, AtlasFiles
from nnunet_alice.anatomy.landmarks import to_locations
from nnunet_alice.anatomy.registration import MIN_QUALITY
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import NotPreparedError, StaleError
from nnunet_alice.matching.interface import GeometryMatcher, Matches, usable_cases

logger = logging.getLogger(__name__)


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
        arguments = f"-d {dataset.number} -p {dataset.plans_name} -c {dataset.configuration}"
        command = f"nnunet_alice anatomy {arguments} --method atlas"
        self.files = AtlasFiles(dataset)
        report = self.files.read_report()
        if report is None:
            raise NotPreparedError(f"No atlas was prepared for {dataset.folder}; run: {command}").about(
                path=dataset.folder, command=command
            )
        existing = dataset.cases()
        good = [case for case in existing if case in report.records and report.records[case].status == OK]
        missing = [case for case in existing if case not in report.records]
        if missing:
            logger.warning(
                "%d of %d cases are not registered to the atlas yet (e.g. %s) and are left out; run: %s",
                len(missing), len(existing), missing[0], command,
            )  # fmt: skip
        self.fingerprint = report.fingerprint
        good = usable_cases(
            good, lambda case: self.files.read_record(case, self.fingerprint) is not None, "registrations", command
        )
        if len(good) < 2:
            raise NotPreparedError(
                f"Only {len(good)} of {len(existing)} cases are registered well to the atlas {report.atlas_case}; "
                f"look at {self.files.picture} and name a better atlas: {command} --atlas CASE"
            ).about(case=report.atlas_case, path=self.files.picture, value=len(good), command=f"{command} --atlas CASE")
        if report.shortfall:
            logger.warning("%s", report.shortfall)
        super().__init__(dataset, good)
        self.atlas_case = report.atlas_case
        self._quality = {case: report.records[case].quality for case in good}

    def affine(self, case: str) -> np.ndarray:
        """Return (4, 4) map from mm of a case to mm of the atlas, (z, y, x).

        Raises:
            NotPreparedError: its registration is missing or of a different atlas.
        """
        return self._recent(("affine", case), lambda: self._read_affine(case))

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Return counterparts in ``case_b`` of ``points_vox`` (N, 3), voxels of ``case_a``: ``p_B = A_B^-1 A_A p``."""
        points_mm = np.asarray(points_vox, dtype=np.float64) * self.dataset.spacing
        to_b = Affine(np.linalg.solve(self.affine(case_b), self.affine(case_a)))
        found = to_b.points(points_mm) / self.dataset.spacing
        score = min(self._quality[case_a], self._quality[case_b])
        return Matches(found, np.where(self.geometry(case_b).in_body(found), score, -np.inf))

    def open(self, case: str) -> None:
        """Read geometry and registration of a case."""
        super().open(case)
        self.affine(case)

    def to_atlas_mm(self, case: str, points_vox: np.ndarray) -> np.ndarray:
        """Map (N, 3) voxels of a case to (N, 3) mm of the atlas, (z, y, x)."""
        return Affine(self.affine(case)).points(np.asarray(points_vox, dtype=np.float64) * self.dataset.spacing)

    def location(self, case: str, points_vox: np.ndarray) -> np.ndarray:
        """Return atlas coordinates of points, scaled so that the atlas array spans [-1, 1] on each axis.

        DrasCLR conditions on (x, y, z); ours stay in the order (z, y, x) of all arrays here. Points beyond the atlas
        are clipped to its border.

        Args:
            case: name of the case.
            points_vox: (N, 3) voxels, (z, y, x).

        Returns:
            (N, 3) float64 in [-1, 1], (z, y, x).
        """
        atlas = self.geometry(self.atlas_case)
        return np.clip(to_locations(self.to_atlas_mm(case, points_vox), atlas.shape, atlas.spacing), -1.0, 1.0)

    def _read_affine(self, case: str) -> np.ndarray:
        record = self.files.read_record(case, self.fingerprint)
        if record is None:
            raise StaleError(
                f"{self.files.case_file(case)} is missing or of other images; run nnunet_alice anatomy again."
            ).about(case=case, path=self.files.case_file(case), command="nnunet_alice anatomy")
        return record.matrix
