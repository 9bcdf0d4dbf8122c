"""The atlas: a case that all others, and new images, are registered to."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from nnunet_alice.anatomy.atlas_files import FAILED, OK, POOR, AtlasFiles, AtlasRecord, AtlasReport
from nnunet_alice.anatomy.deformation import NO_DEFORMATION, Deformation, deform
from nnunet_alice.anatomy.geometry import CaseGeometry, geometry_checksum, load_geometry
from nnunet_alice.anatomy.landmarks import Landmarks, to_locations
from nnunet_alice.anatomy.lungs import lung_geometry
from nnunet_alice.anatomy.medoid import find_medoid
from nnunet_alice.anatomy.registration import BODY, LUNGS, Registration, edge_agreement, register
from nnunet_alice.dataset import TOGETHER, PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.parallel import for_each_case
from nnunet_alice.parts import Part
from nnunet_alice.words import telling

logger = logging.getLogger(__name__)

#: arrays of a geometry, as files and checkpoints name them
ARRAYS = ("image", "packed_body")


@dataclass(frozen=True)
class Atlas:
    """The case that others are registered to, wherever it comes from.

    Attributes:
        geometry: of that case.
        registered_by: what cases are registered to it by, ``body`` or ``lungs``.
    """

    geometry: CaseGeometry
    registered_by: str = BODY

    @classmethod
    def of_stored(cls, content: Mapping[str, Any]) -> "Atlas":
        """Return what `stored` gave, out of a checkpoint of DrasCLRTrainer (``drasclr``)."""
        stored = content["atlas"]
        values = {field.name: stored[field.name] for field in fields(CaseGeometry) if field.name in stored}
        geometry = CaseGeometry(**values | {name: values[name].numpy() for name in ARRAYS})
        return cls(geometry, content.get("registered_by", BODY))

    def stored(self) -> dict[str, Any]:
        """Return the atlas as plain types and arrays, for a checkpoint."""
        return {"atlas": asdict(self.geometry), "registered_by": self.registered_by}

    @cached_property
    def checksum(self) -> str:
        """Equal for two atlases that give the same locations."""
        geometry = self.geometry
        described = [*geometry.shape, *geometry.spacing, *geometry.factors, *geometry.grid_shape]
        content = hashlib.sha256(json.dumps([float(number) for number in described]).encode())
        if self.registered_by != BODY:
            content.update(self.registered_by.encode())
        for array in (geometry.image, geometry.packed_body):
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()[:16]

    def register(self, case: CaseGeometry) -> Registration:
        """Register a case, or a new image, to the atlas: by all of the body, or by the shape of the lungs on CT.

        How well edges agree is measured in all of the body.

        Raises:
            InputError: no lungs are found in one of them.
        """
        if self.registered_by == LUNGS:
            found = register(lung_geometry(case), lung_geometry(self.geometry))
        else:
            found = register(case, self.geometry)
        return replace(found, edges=edge_agreement(found.affine, case, self.geometry))

    def locations(self, points_mm: np.ndarray) -> np.ndarray:
        """Return coordinates for networks of points (N, 3) of the atlas, see `to_locations`."""
        return to_locations(points_mm, self.geometry.shape, self.geometry.spacing)


@dataclass(frozen=True, kw_only=True)
class PreparedAtlas(Atlas):
    """The atlas of a preprocessed dataset, whose cases were registered to it.

    Attributes:
        dataset: the dataset, or that of one modality.
        fingerprint: what the registrations were made from; stored ones of something else do not count.
    """

    dataset: PreprocessedDataset
    fingerprint: dict

    @classmethod
    def open(cls, dataset: PreprocessedDataset, report: AtlasReport | None = None) -> "PreparedAtlas":
        """Open the atlas that `prepare_atlas` made.

        Args:
            dataset: the preprocessed dataset.
            report: of its registrations, where the caller has read it.

        Raises:
            NotPreparedError: there is none, or its preparation did not finish; the message names the command.
        """
        report = report or AtlasFiles(dataset).finished_report()
        registered_by = report.fingerprint.get("registered_by", BODY)
        geometry = load_geometry(dataset, report.atlas_case)
        return cls(geometry, registered_by, dataset=dataset, fingerprint=report.fingerprint)

    @classmethod
    def find(cls, dataset: PreprocessedDataset) -> "PreparedAtlas | None":
        """Open the atlas as `open` does; None where there is none, or its preparation did not finish."""
        report = AtlasFiles(dataset).read_report()
        return None if report is None else cls.open(dataset, report)

    @property
    def files(self) -> AtlasFiles:
        """What it left on disk."""
        return AtlasFiles(self.dataset)

    def known_affine(self, case: str) -> np.ndarray | None:
        """Return the (4, 4) map from mm of a case to mm of the atlas, (z, y, x); None where no stored one counts."""
        record = self.files.read_record(case, self.fingerprint)
        return None if record is None or record.affine is None else np.asarray(record.affine, dtype=np.float64)

    def affine(self, case: str) -> np.ndarray:
        """Return `known_affine` of a case.

        Raises:
            NotPreparedError: the registration is missing, failed, or of a different image or atlas.
        """
        if (known := self.known_affine(case)) is None:
            file = self.files.case_file(case)
            raise NotPreparedError(
                f"{file} is missing, failed or of other images; run nnunet_alice anatomy again."
            ).about(case=case, path=file)
        return known

    def deform(self, affine: np.ndarray, case: CaseGeometry) -> Deformation:
        """Return the deformation that the affine map of a case leaves over; none where modalities are mixed.

        Demons compare intensities, which mean something different in every modality.
        """
        mixed = self.dataset.modality in (None, TOGETHER) and len(set(self.dataset.modalities.values())) > 1
        return NO_DEFORMATION if mixed else deform(affine, case, self.geometry)

    def deformation(self, case: str) -> Deformation:
        """Return what the affine map of a case leaves over, see :func:`nnunet_alice.anatomy.deformation.deform`.

        Raises:
            NotPreparedError: its file is missing or damaged.
        """
        return self.files.read_deformation(case)

    def landmarks(self) -> Landmarks:
        """Return the landmarks that were laid on this atlas.

        Raises:
            NotPreparedError: there are none; the message names the command.
        """
        if self.files.read_landmarks_report(self.fingerprint) is None:
            raise NotPreparedError(
                f"No landmarks were laid on the atlas of {self.dataset.folder}; run: {self.dataset.anatomy_command}"
            ).about(path=self.dataset.folder, command=self.dataset.anatomy_command)
        return Landmarks.load(self.files.landmarks_file)


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
    chosen = _choose_atlas(files, cases, atlas_case, overwrite)
    region = region or files.region()
    if region != BODY:
        lung_geometry(chosen)  # an atlas without lungs would fail every case
    files.write_atlas(chosen.case, chosen.grid_spacing_mm, region)
    atlas = PreparedAtlas(chosen, region, dataset=dataset, fingerprint=files.fingerprint(chosen.case))
    cases = cases if part is None else part.share(cases)

    def known(case: str) -> AtlasRecord | None:
        record = files.read_record(case, atlas.fingerprint)
        return record if record is not None and record.status != FAILED else None

    def rescue(case: str, error: Exception) -> AtlasRecord:
        if (record := known(case)) is not None:  # by a different machine, meanwhile
            return record
        failed = AtlasRecord(case, FAILED, telling(error))
        files.write_record(failed, atlas.fingerprint, None)  # it will be tried again, whatever the image
        raise error

    outcomes = for_each_case(
        partial(_register_one, atlas, overwrite),
        cases,
        doing="Registering to the atlas",
        num_processes=num_processes,
        keep=None if overwrite else known,
        rescue=rescue,
    )
    report = AtlasReport(chosen.case, atlas.fingerprint, outcomes)
    if part is None:
        files.write_report(report)
        if report.shortfall:
            logger.warning("%s", report.shortfall)
    return report


def _choose_atlas(files: AtlasFiles, cases: list[str], asked: str | None, overwrite: bool) -> CaseGeometry:
    if asked is not None and asked not in cases:
        raise InputError(f"There is no preprocessed case '{asked}' in {files.dataset.folder}; check --atlas.").about(
            case=asked, path=files.dataset.folder, option="--atlas"
        )
    chosen = asked or (None if overwrite else files.atlas_case())
    if chosen not in cases:
        chosen = find_medoid(cases, lambda case: load_geometry(files.dataset, case, overwrite))
    return load_geometry(files.dataset, chosen, overwrite)


def _register_one(atlas: PreparedAtlas, overwrite: bool, case: str) -> AtlasRecord:
    started, geometry = time.perf_counter(), atlas.geometry
    if case != geometry.case:
        geometry = load_geometry(atlas.dataset, case, overwrite)
    checksum = geometry_checksum(atlas.dataset, case)
    result = atlas.register(geometry)
    if not result.problem:
        atlas.files.write_deformation(case, atlas.deform(result.affine, geometry))
    record = AtlasRecord(
        case,
        POOR if result.problem else OK,
        result.problem,
        result.quality,
        time.perf_counter() - started,
        result.affine.tolist(),
        result.correlation,
        result.overlap,
    )
    atlas.files.write_record(record, atlas.fingerprint, checksum)
    return record
