"""The atlas: every case registered to one, and counterparts found through its coordinates."""

import logging
import time
from dataclasses import dataclass

import numpy as np

from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR, AtlasFiles, AtlasRecord, AtlasReport
from nnunet_alice.anatomy.geometry import CaseGeometry, geometry_stamp, load_geometry
from nnunet_alice.anatomy.landmarks import to_locations
from nnunet_alice.anatomy.medoid import most_typical
from nnunet_alice.anatomy.registration import MIN_QUALITY, register
from nnunet_alice.errors import AliceError, InputError, NotPreparedError
from nnunet_alice.matching.interface import GeometryMatcher, Matches, usable_cases
from nnunet_alice.nnunet_folders import PreprocessedDataset
from nnunet_alice.parallel import map_cases

logger = logging.getLogger(__name__)


def prepare_atlas(
    dataset: PreprocessedDataset, num_processes: int, atlas_case: str | None = None, overwrite: bool = False
) -> AtlasReport:
    """Register every preprocessed case to one atlas case and store the outcome under ``dataset.anatomy_folder``.

    Resumable: registrations to the same atlas that are there already are kept; failed ones are tried again. A case
    that fails never stops the others.

    Args:
        dataset: the preprocessed dataset.
        num_processes: processes; 1 works in this process.
        atlas_case: name of the atlas; None keeps the one chosen before, or else takes the most typical case.
        overwrite: do everything again, the choice of the atlas too.

    Returns:
        the outcome of every case.

    Raises:
        InputError: fewer than two cases, a 2D configuration, an unknown atlas case, or one without a usable image.
    """
    if len(dataset.spacing) != 3:
        raise InputError(
            f"{dataset.name}: the configuration {dataset.configuration} is 2D, but anatomy needs a 3D one; "
            "name one with -c, e.g. -c 3d_fullres."
        )
    cases = dataset.cases()
    if len(cases) < 2:
        raise InputError(f"{dataset.name} has only {len(cases)} preprocessed case; matching needs at least two.")
    files = AtlasFiles(dataset)
    atlas = _choose_atlas(files, cases, atlas_case, overwrite)
    files.write_atlas(atlas.case, atlas.grid_spacing_mm)
    job = _Job(dataset, atlas, files.fingerprint(atlas.case), overwrite)
    report = AtlasReport(atlas.case, job.fingerprint)
    for case in cases:
        known = None if overwrite else files.read_record(case, job.fingerprint)
        if known is not None and known.status != FAILED:
            report.records[case] = known
    waiting = [case for case in cases if case not in report.records]
    logger.info("Atlas %s: %d of %d cases to register.", atlas.case, len(waiting), len(cases))
    for case, outcome in map_cases(_register_one, job, waiting, num_processes, "Registering to the atlas"):
        if isinstance(outcome, Exception):
            reason = str(outcome) if isinstance(outcome, AliceError) else f"{type(outcome).__name__}: {outcome}"
            outcome = AtlasRecord(case, FAILED, reason)
            there = files.read_record(case, job.fingerprint)  # by another machine, meanwhile
            if there is not None and there.status != FAILED:
                outcome = there
            else:
                files.write_record(outcome, job.fingerprint, None)  # it will be tried again, whatever the image
        report.records[case] = outcome
    files.write_report(report)
    return report


@dataclass(frozen=True)
class _Job:
    """What a process needs to register a case."""

    dataset: PreprocessedDataset
    atlas: CaseGeometry
    fingerprint: dict
    overwrite: bool


def _choose_atlas(files: AtlasFiles, cases: list[str], asked: str | None, overwrite: bool) -> CaseGeometry:
    if asked is not None and asked not in cases:
        raise InputError(f"There is no preprocessed case '{asked}' in {files.dataset.folder}; check --atlas.")
    chosen = asked or (None if overwrite else files.atlas_case())
    if chosen not in cases:
        chosen = most_typical(cases, lambda case: load_geometry(files.dataset, case, overwrite))
    return load_geometry(files.dataset, chosen, overwrite)


def _register_one(job: _Job, case: str) -> AtlasRecord:
    started = time.perf_counter()
    geometry = job.atlas
    if case != job.atlas.case:
        geometry = load_geometry(job.dataset, case, job.overwrite)
    stamp = geometry_stamp(job.dataset, case)
    result = register(geometry, job.atlas)
    good = result.quality >= MIN_QUALITY
    record = AtlasRecord(
        case,
        OK if good else POOR,
        "" if good else f"quality {result.quality:.2f} is below {MIN_QUALITY}",
        result.quality,
        time.perf_counter() - started,
        result.affine.tolist(),
        result.correlation,
        result.overlap,
    )
    AtlasFiles(job.dataset).write_record(record, job.fingerprint, stamp)
    return record


class AtlasMatcher(GeometryMatcher):
    """Counterpart = the point of B with the same atlas coordinates; implements ``Matcher``.

    The score is the lower quality of the two registrations, and ``-inf`` where the counterpart lies outside of B's
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
            raise NotPreparedError(f"No atlas was prepared for {dataset.folder}; run: {command}")
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
            )
        super().__init__(dataset, good)
        self.atlas_case = report.atlas_case
        self._quality = {case: report.records[case].quality for case in good}

    def affine(self, case: str) -> np.ndarray:
        """(4, 4) map from mm of a case to mm of the atlas, (z, y, x).

        Raises:
            NotPreparedError: its registration is missing or of another atlas.
        """
        return self._recent(("affine", case), lambda: self._read_affine(case))

    def match(self, case_a: str, case_b: str, points_vox: np.ndarray) -> Matches:
        """Counterparts in ``case_b`` of ``points_vox`` (N, 3), voxels of ``case_a``: ``p_B = A_B^-1 A_A p``."""
        points_mm = np.asarray(points_vox, dtype=np.float64) * self.dataset.spacing
        to_b = np.linalg.solve(self.affine(case_b), self.affine(case_a))
        found = (points_mm @ to_b[:3, :3].T + to_b[:3, 3]) / self.dataset.spacing
        score = min(self._quality[case_a], self._quality[case_b])
        return Matches(found, np.where(self.geometry(case_b).in_body(found), score, -np.inf))

    def open(self, case: str) -> None:
        """Read geometry and registration of a case."""
        super().open(case)
        self.affine(case)

    def to_atlas_mm(self, case: str, points_vox: np.ndarray) -> np.ndarray:
        """(N, 3) voxels of a case to (N, 3) mm of the atlas, (z, y, x)."""
        affine = self.affine(case)
        return np.asarray(points_vox, dtype=np.float64) * self.dataset.spacing @ affine[:3, :3].T + affine[:3, 3]

    def location(self, case: str, points_vox: np.ndarray) -> np.ndarray:
        """Atlas coordinates of points, scaled so that the atlas array spans [-1, 1] on each axis.

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
            raise NotPreparedError(
                f"{self.files.case_file(case)} is missing or of other images; run nnunet_alice anatomy again."
            )
        return record.matrix
