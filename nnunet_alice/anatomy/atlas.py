"""The atlas: every case registered to one of them."""

import logging
import time
from dataclasses import dataclass
from functools import partial

from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR, AtlasFiles, AtlasRecord, AtlasReport
from nnunet_alice.anatomy.geometry import CaseGeometry, geometry_checksum, load_geometry
from nnunet_alice.anatomy.lungs import lung_geometry
from nnunet_alice.anatomy.medoid import find_medoid
from nnunet_alice.anatomy.registration import BODY, MIN_QUALITY, register_by
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.parallel import for_each_case
from nnunet_alice.parts import Part
from nnunet_alice.words import telling

logger = logging.getLogger(__name__)


def prepare_atlas(
    dataset: PreprocessedDataset,
    num_processes: int,
    *,
    atlas_case: str | None = None,
    overwrite: bool = False,
    region: str | None = None,
    part: Part | None = None,
) -> AtlasReport:
    """Register every preprocessed case to one atlas case and store the outcome under ``dataset.anatomy_folder``.

    >>> import nnunet_alice
    >>> report = nnunet_alice.prepare_atlas(nnunet_alice.open_dataset(900), 1)
    >>> sorted(report.records)
    ['case0', 'case1', 'case2']

    Resumable: registrations to the same atlas that are there already are kept; failed ones are tried again. A case
    that fails never stops the others.

    Args:
        dataset: the preprocessed dataset.
        num_processes: processes; 1 works in this process.
        atlas_case: name of the atlas; None keeps the one chosen before, or else takes the most typical case.
        overwrite: do everything again, the choice of the atlas too.
        region: what cases are registered by, ``body`` or ``lungs``; None is what was chosen before, or the body.
        part: register this share of the cases only, and write no report: that is up to a run without.

    Returns:
        the outcome of every case, or of those of the part.

    Raises:
        InputError: fewer than two cases, a 2D configuration, an unknown atlas case, or one without a usable image.
    """
    if len(dataset.spacing) != 3:
        raise InputError(
            f"{dataset.name}: the configuration {dataset.configuration} is 2D, but anatomy needs a 3D one; "
            "name one with -c, e.g. -c 3d_fullres."
        ).about(option="-c", value=dataset.configuration)
    cases = dataset.cases()
    if len(cases) < 2:
        raise InputError(f"{dataset.name} has only {len(cases)} preprocessed case; matching needs at least two.").about(
            value=len(cases)
        )
    files = AtlasFiles(dataset)
    atlas = _choose_atlas(files, cases, atlas_case, overwrite)
    region = region or files.region()
    if region != BODY:
        lung_geometry(atlas)  # an atlas without lungs would fail every case
    files.write_atlas(atlas.case, atlas.grid_spacing_mm, region)
    job = _Job(dataset, atlas, region, files.fingerprint(atlas.case), overwrite)
    cases = cases if part is None else part.share(cases)

    def known(case: str) -> AtlasRecord | None:
        record = files.read_record(case, job.fingerprint)
        return record if record is not None and record.status != FAILED else None

    def rescue(case: str, error: Exception) -> AtlasRecord:
        if (record := known(case)) is not None:  # by a different machine, meanwhile
            return record
        failed = AtlasRecord(case, FAILED, telling(error))
        files.write_record(failed, job.fingerprint, None)  # it will be tried again, whatever the image
        raise error

    outcomes = for_each_case(
        partial(_register_one, job),
        cases,
        doing="Registering to the atlas",
        num_processes=num_processes,
        keep=None if overwrite else known,
        rescue=rescue,
    )
    report = AtlasReport(atlas.case, job.fingerprint, outcomes)
    if part is None:
        files.write_report(report)
        if report.shortfall:
            logger.warning("%s", report.shortfall)
    return report


@dataclass(frozen=True)
class _Job:
    """What a process needs to register a case."""

    dataset: PreprocessedDataset
    atlas: CaseGeometry
    region: str
    fingerprint: dict
    overwrite: bool


def _choose_atlas(files: AtlasFiles, cases: list[str], asked: str | None, overwrite: bool) -> CaseGeometry:
    if asked is not None and asked not in cases:
        raise InputError(f"There is no preprocessed case '{asked}' in {files.dataset.folder}; check --atlas.").about(
            case=asked, path=files.dataset.folder, option="--atlas"
        )
    chosen = asked or (None if overwrite else files.atlas_case())
    if chosen not in cases:
        chosen = find_medoid(cases, lambda case: load_geometry(files.dataset, case, overwrite))
    return load_geometry(files.dataset, chosen, overwrite)


def _register_one(job: _Job, case: str) -> AtlasRecord:
    started = time.perf_counter()
    geometry = job.atlas
    if case != job.atlas.case:
        geometry = load_geometry(job.dataset, case, job.overwrite)
    checksum = geometry_checksum(job.dataset, case)
    result = register_by(job.region, geometry, job.atlas)
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
    AtlasFiles(job.dataset).write_record(record, job.fingerprint, checksum)
    return record
