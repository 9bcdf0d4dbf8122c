"""What an atlas leaves on disk, beside the preprocessed cases: who is the atlas, one file a case, one report.

``<data_identifier>_anatomy/atlas/atlas.json`` names the atlas case and what it was made from (the fingerprint).
``atlas/cases/<case>.json`` holds one affine registration, ``atlas/deformations/<case>.npz`` what it leaves over.
``atlas/report.json`` holds the outcome of all.

Every JSON file carries the fingerprint: what does not fit is of a different atlas and is made again. A registration
carries the checksum of its case's image, too (``PreprocessedDataset.image_checksum``), and the fingerprint that of the
atlas: an image that was preprocessed again is a different image. It answers for the deformation, too.
"""

import logging
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_alice.anatomy.deformation import Deformation
from nnunet_alice.anatomy.geometry import UNREADABLE, geometry_checksum
from nnunet_alice.anatomy.registration import BODY
from nnunet_alice.dataset import TOGETHER, PreprocessedDataset
from nnunet_alice.errors import InputError, NotPreparedError
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.parallel import Outcomes

logger = logging.getLogger(__name__)

#: Raised when the registration or its stored form changes: older registrations are made again.
VERSION = 4
#: Outcomes of a case: used for matching; registered but not to be trusted; not registered at all.
OK, POOR, FAILED = "ok", "poor", "failed"


#: Where a smaller share of the cases is ok, something is wrong with the atlas or with the dataset.
MIN_SHARE = 0.5


@dataclass(frozen=True)
class AtlasRecord:
    """Outcome of one case.

    Attributes:
        case: its name.
        status: ``ok``, ``poor`` or ``failed``.
        reason: why it is not ok; empty otherwise.
        quality: see :class:`nnunet_alice.anatomy.registration.Registration`; 0 when failed.
        seconds: that the registration took.
        affine: (4, 4) as nested lists, case mm (z, y, x) -> atlas mm; None when failed.
        correlation: part of the quality.
        overlap: part of the quality.
    """

    case: str
    status: str
    reason: str = ""
    quality: float = 0.0
    seconds: float = 0.0
    affine: list[list[float]] | None = None
    correlation: float = 0.0
    overlap: float = 0.0


@dataclass(frozen=True)
class AtlasReport:
    """Outcome of all cases.

    Attributes:
        atlas_case: name of the atlas.
        fingerprint: what the registrations were made from.
        outcomes: the record of each case (without ``affine`` when read from the report's file).
    """

    atlas_case: str
    fingerprint: dict
    outcomes: Outcomes[AtlasRecord]

    @cached_property
    def records(self) -> dict[str, AtlasRecord]:
        """Case -> its record, also of those that failed."""
        failed = {case: AtlasRecord(case, FAILED, reason) for case, reason in self.outcomes.failed.items()}
        return self.outcomes.results | failed

    def named(self, status: str) -> list[AtlasRecord]:
        """Return records of one status, worst first."""
        chosen = [record for record in self.records.values() if record.status == status]
        return sorted(chosen, key=lambda record: (record.quality, record.case))

    @property
    def shortfall(self) -> str:
        """What to try where less than half of the cases were registered well; empty otherwise."""
        good, total = len(self.named(OK)), len(self.records)
        if good >= MIN_SHARE * total:
            return ""
        return (
            f"Only {good} of {total} cases ({good / total:.0%}) are registered well to the atlas {self.atlas_case}; "
            "views of all others find no counterparts. Look at the picture; then name a case that shows what most of "
            "them show (--atlas CASE), or keep other body regions and orientations in datasets of their own, or train "
            "a matcher that does not register (AnatomicalEmbeddingTrainer)."
        )


class AtlasFiles:
    """Paths, reading and writing of the files of one dataset's atlas, or of the one of its modality."""

    def __init__(self, dataset: PreprocessedDataset) -> None:
        self.dataset = dataset
        own = "" if dataset.modality in (None, TOGETHER) else f"_{dataset.modality}"
        self.folder = dataset.anatomy_folder / f"atlas{own}"

    @property
    def atlas_file(self) -> Path:
        """Names the atlas case."""
        return self.folder / "atlas.json"

    @property
    def report_file(self) -> Path:
        """Outcome of all cases; written last, so that it stands for a finished atlas."""
        return self.folder / "report.json"

    @property
    def picture(self) -> Path:
        """Where the picture of the registrations belongs."""
        return self.folder / "atlas.png"

    @property
    def landmarks_file(self) -> Path:
        """The landmarks that were laid on the atlas."""
        return self.folder / "landmarks.json"

    @property
    def landmarks_report_file(self) -> Path:
        """What they were laid on and how many cases see each; written last, with the fingerprint of the atlas."""
        return self.folder / "landmarks_report.json"

    @property
    def landmarks_picture(self) -> Path:
        """Where the picture of the landmarks belongs."""
        return self.folder / "landmarks.png"

    def region(self) -> str:
        """Return what cases are registered by: ``body``, unless ``lungs`` were asked for."""
        try:
            return read_json(self.atlas_file).get("registered_by", BODY)
        except (InputError, AttributeError):
            return BODY

    def fingerprint(self, atlas_case: str, region: str | None = None) -> dict:
        """Return what registrations to this atlas depend on: the preprocessed cases, which several plans may share.

        Args:
            atlas_case: name of the atlas.
            region: what cases are registered by; None is what was chosen before.
        """
        fingerprint = {
            "version": VERSION,
            "preprocessed": self.dataset.folder.name,
            "spacing": list(self.dataset.spacing),
            "atlas_case": atlas_case,
        }
        region = region or self.region()
        if region != BODY:
            fingerprint["registered_by"] = region
        return fingerprint | {"atlas_image": geometry_checksum(self.dataset, atlas_case)}

    def named_case(self) -> str | None:
        """Return the name of the atlas that was chosen before, whether it still fits or not; None if there is none."""
        try:
            return read_json(self.atlas_file)["atlas_case"]
        except (InputError, KeyError, TypeError):
            return None

    def atlas_case(self) -> str | None:
        """Return the name of the atlas that was chosen before and still fits the dataset; None if there is none."""
        if not self.atlas_file.is_file():
            return None
        content = read_json(self.atlas_file)
        case = content.get("atlas_case")
        return case if case is not None and content.get("fingerprint") == self.fingerprint(case) else None

    def write_atlas(self, atlas_case: str, grid_spacing_mm: tuple[float, ...], region: str) -> None:
        """Name the atlas, and what cases are registered by; from now on a report of a different one counts no more."""
        content = {
            "atlas_case": atlas_case,
            "grid_spacing_mm": list(grid_spacing_mm),
            "registered_by": region,
            "fingerprint": self.fingerprint(atlas_case, region),
        }
        write_json(self.atlas_file, content)

    def case_file(self, case: str) -> Path:
        """Return the registration of one case."""
        return self.folder / "cases" / f"{case}.json"

    def deformation_file(self, case: str) -> Path:
        """Return the deformation of one case that is registered well."""
        return self.folder / "deformations" / f"{case}.npz"

    def write_deformation(self, case: str, deformation: Deformation) -> None:
        """Store the deformation of a case; its record is written afterwards, and answers for it.

        An earlier record goes first: it may be of a different atlas.
        """
        self.case_file(case).unlink(missing_ok=True)
        with atomic_write(self.deformation_file(case)) as temporary:
            np.savez_compressed(temporary, **asdict(deformation))

    def read_deformation(self, case: str) -> Deformation:
        """Return the deformation of a case.

        Raises:
            NotPreparedError: its file is missing or damaged.
        """
        path = self.deformation_file(case)
        try:
            with np.load(path, allow_pickle=False) as file:
                origin_mm, step_mm = (tuple(file[name].tolist()) for name in ("origin_mm", "step_mm"))
                return Deformation(file["displacement_mm"], origin_mm, step_mm)
        except UNREADABLE as error:
            raise NotPreparedError(
                f"{path} is missing or damaged ({error}); delete it and run nnunet_alice anatomy again."
            ).about(case=case, path=path) from None

    def read_record(self, case: str, fingerprint: dict) -> AtlasRecord | None:
        """Return a case's registration to this atlas; None if missing, damaged, or of different images."""
        path = self.case_file(case)
        if not path.is_file():
            return None
        try:
            content = read_json(path)
            stale = content.pop("image", None) != geometry_checksum(self.dataset, case)
            if content.pop("fingerprint") != fingerprint or stale:
                return None
            record = AtlasRecord(**content)
            return None if record.status == OK and not self.deformation_file(case).is_file() else record
        except (InputError, KeyError, TypeError, AttributeError, OSError):  # OSError: the image cannot be opened
            return None

    def write_record(self, record: AtlasRecord, fingerprint: dict, checksum: str | None) -> None:
        """Store the registration of a case, and the checksum of the image that it was made from."""
        write_json(self.case_file(record.case), {**asdict(record), "fingerprint": fingerprint, "image": checksum})

    def write_report(self, report: AtlasReport) -> None:
        """Store the outcome of all cases, without their affine maps."""
        records = {case: asdict(record) for case, record in sorted(report.records.items())}
        for record in records.values():
            del record["case"], record["affine"]
        counts = {status: len(report.named(status)) for status in (OK, POOR, FAILED)}
        content = {"atlas_case": report.atlas_case, "fingerprint": report.fingerprint, "counts": counts}
        write_json(self.report_file, {**content, "cases": records})

    def finished_report(self) -> AtlasReport:
        """Return the report.

        Raises:
            NotPreparedError: none fits the dataset and the chosen atlas; the message names the command.
        """
        if (report := self.read_report()) is None:
            command = f"{self.dataset.anatomy_command} --method atlas"
            raise NotPreparedError(f"No atlas was prepared for {self.dataset.folder}; run: {command}").about(
                path=self.dataset.folder, command=command
            )
        return report

    def read_landmarks_report(self, fingerprint: dict) -> dict[str, Any] | None:
        """Return what is known of the landmarks, if they are there and lie on the atlas of this fingerprint."""
        if not self.landmarks_report_file.is_file() or not self.landmarks_file.is_file():
            return None
        try:
            content = read_json(self.landmarks_report_file)
            return content if content["fingerprint"] == fingerprint else None
        except (InputError, KeyError, TypeError) as error:
            logger.warning("%s is unreadable (%s): landmarks are laid again.", self.landmarks_report_file, error)
            return None

    def read_report(self) -> AtlasReport | None:
        """Return the report, if there is one that fits the dataset and the chosen atlas as they are now."""
        if not self.report_file.is_file():
            return None
        try:
            content = read_json(self.report_file)
            atlas_case, fingerprint = content["atlas_case"], content["fingerprint"]
            if atlas_case != self.atlas_case() or fingerprint != self.fingerprint(atlas_case):
                return None
            records = {case: AtlasRecord(case=case, **entry) for case, entry in content["cases"].items()}
        except (InputError, KeyError, TypeError, AttributeError):
            return None
        failed = {case: record.reason for case, record in records.items() if record.status == FAILED}
        done = {case: record for case, record in records.items() if case not in failed}
        return AtlasReport(atlas_case, fingerprint, Outcomes(done, list(done), failed))
