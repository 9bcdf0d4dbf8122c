"""A folder of unlabelled volumes becomes an nnU-Net dataset, without copying an image.

The only label is a body mask, so that nnU-Net collects intensities inside the body; `dataset.json` points to the images
where they are. Files that nnU-Net could not train on are left out and named in `import_report.json`.
"""

import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_alice.anatomy.body import body_mask
from nnunet_alice.errors import AliceError, InputError
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.importing.checks import grid_difference, orientation, read_case
from nnunet_alice.importing.scan import Candidate, find_cases
from nnunet_alice.nnunet_folders import nnunet_folder
from nnunet_alice.parallel import map_cases

logger = logging.getLogger(__name__)

REPORT_FILE = "import_report.json"
#: Labels are always written as this, whatever the images are.
LABEL_ENDING = ".nii.gz"
#: Seconds between two savings of the report during the work, so that a killed import loses little.
SAVE_EVERY_S = 30.0


@dataclass
class ImportReport:
    """What an import did, as kept in ``import_report.json``.

    Attributes:
        dataset: full name, ``Dataset900_NAME``.
        source: the folder that was imported.
        channels: names of the channels.
        cases: case -> record with ``status`` (``imported`` or ``left out``), ``reason`` (of a case left out), ``files``
            (path, bytes, modification time), and of an imported case ``orientation``, ``shape`` (z, y, x),
            ``spacing_mm`` (z, y, x) and ``body_share`` (share of voxels in the body). ``retry`` marks a failure that
            may not be the file's.
        folder: folder of the dataset; not stored.
        checked: number of cases that this run read, all others being known already; not stored.
    """

    dataset: str
    source: str
    channels: list[str]
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: Path | None = None
    checked: int = 0

    @property
    def imported(self) -> list[str]:
        """Names of the imported cases, sorted."""
        return sorted(case for case, record in self.cases.items() if record["status"] == "imported")

    @property
    def left_out(self) -> dict[str, str]:
        """Reason of each case that was left out, sorted by case."""
        return {case: r["reason"] for case, r in sorted(self.cases.items()) if r["status"] == "left out"}

    @property
    def file(self) -> Path:
        """Where the report is kept."""
        return self.folder / REPORT_FILE

    def save(self) -> None:
        """Write the report, whole or not at all."""
        content = asdict(self)
        del content["folder"], content["checked"]
        content["cases"] = dict(sorted(self.cases.items()))
        write_json(self.file, content)


def import_unlabelled(
    folder: str | os.PathLike,
    dataset_id: int,
    name: str,
    channels: Sequence[str],
    num_processes: int = 4,
    strict: bool = False,
) -> ImportReport:
    """Make ``nnUNet_raw/Dataset<id>_<name>`` of a folder of unlabelled volumes (NIfTI, NRRD, MHA).

    Every file is read once and checked; a bad one never stops the others. Called again, it reads only what is new,
    changed or without label: what is known of the other files, bad ones included, is in the report. The reader in
    ``dataset.json`` reorients the images if their orientations differ.

    Args:
        folder: searched with its sub-folders; :func:`nnunet_alice.importing.scan.find_cases` names the cases.
        dataset_id: number of the dataset, 1 to 999.
        name: name of the dataset.
        channels: one name per channel; nnU-Net chooses the normalisation by it (``CT``, or any other name for z-score).
        num_processes: processes that read, each holding one case in memory.
        strict: fail if any case was left out; the others are imported all the same.

    Returns:
        the report, which is on disk as well.

    Raises:
        InputError: folder, number, name or channels are not usable; nothing could be imported; or ``strict`` and a case
            was left out.
    """
    source = Path(os.path.abspath(Path(folder).expanduser()))
    if not source.is_dir():
        raise InputError(f"{source} is not a folder.")
    if not channels or not all(channel.strip() for channel in channels):
        raise InputError("Name the channels, for instance --channel CT.")
    report = _open_report(_dataset_folder(dataset_id, name), source, list(channels))
    candidates = find_cases(source, len(channels))
    if not candidates:
        raise InputError(f"{source} holds no volume; names have to end in .nii.gz, .nii, .nrrd or .mha (no raw DICOM).")
    known, report.cases = report.cases, {}
    work = _sort_out(report, known, candidates)
    _remove_labels(report, known, [candidate.name for candidate in work])
    _check_and_label(report, work, num_processes)
    _remove_labels(report, known, report.imported)
    _write_dataset_json(report)
    for case, reason in report.left_out.items():
        logger.warning("Left out %s: %s", case, reason)
    if not report.imported:
        raise InputError(f"None of {len(report.cases)} cases in {source} could be imported; reasons: {report.file}")
    if strict and report.left_out:
        raise InputError(
            f"{len(report.left_out)} of {len(report.cases)} cases were left out and --strict was given; "
            f"reasons: {report.file}"
        )
    return report


def _dataset_folder(dataset_id: int, name: str) -> Path:
    """Folder of the dataset in nnUNet_raw, after checking that number and name are free for it."""
    if not 1 <= dataset_id <= 999:
        raise InputError(f"Dataset number {dataset_id} is not between 1 and 999.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InputError(f"Dataset name '{name}' may hold only letters, digits, _ and -.")
    full = f"Dataset{dataset_id:03d}_{name}"
    raw = nnunet_folder("nnUNet_raw")
    others = set()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        place = os.environ.get(variable)
        if place and Path(place).is_dir():
            others |= {entry.name for entry in Path(place).glob(f"Dataset{dataset_id:03d}_*") if entry.is_dir()}
    others.discard(full)
    if others:
        raise InputError(
            f"Dataset number {dataset_id} is taken by {', '.join(sorted(others))}; choose another with -d."
        )
    return raw / full


def _open_report(folder: Path, source: Path, channels: list[str]) -> ImportReport:
    """Report of an earlier import into this folder, or an empty one."""
    report = ImportReport(folder.name, str(source), channels, folder=folder)
    if not (folder / REPORT_FILE).is_file():
        if (folder / "dataset.json").exists() or (folder / "labelsTr").exists():
            raise InputError(f"{folder} exists and was not made by import; choose another number with -d.")
        return report
    earlier = read_json(folder / REPORT_FILE)
    try:
        if earlier["source"] != report.source:
            raise InputError(
                f"{folder} was imported from {earlier['source']}; choose another number with -d, or delete the folder."
            )
        report.cases = {case: dict(record) for case, record in earlier["cases"].items()}
    except (TypeError, KeyError, AttributeError, ValueError):
        raise InputError(f"{folder / REPORT_FILE} is not a report of import; delete it with its folder.") from None
    return report


def _label_file(report: ImportReport, case: str) -> Path:
    return report.folder / "labelsTr" / f"{case}{LABEL_ENDING}"


def _signature(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What tells whether files changed."""
    found = []
    for path in files:
        try:
            status = path.stat()
            found.append({"path": str(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns})
        except OSError:  # a dangling link
            found.append({"path": str(path), "bytes": None, "modified_ns": None})
    return found


def _sort_out(report: ImportReport, known: dict[str, dict], candidates: list[Candidate]) -> list[Candidate]:
    """Record what needs no reading; return what does."""
    work = []
    for candidate in candidates:
        files = _signature(candidate.files)
        record = known.get(candidate.name, {})
        if candidate.problem:
            report.cases[candidate.name] = {"status": "left out", "reason": candidate.problem, "files": files}
        elif record.get("files") == files and (
            _label_file(report, candidate.name).is_file() if record["status"] == "imported" else not record.get("retry")
        ):
            report.cases[candidate.name] = record
        else:
            work.append(candidate)
    return work


def _check_and_label(report: ImportReport, work: list[Candidate], num_processes: int) -> None:
    """Read every candidate, write its label, record the outcome."""
    report.save()  # from the start, so that a killed import is known as an import
    # before they are read: what changes meanwhile (a copy that is still running) is read again by the next import
    signatures = {candidate.name: _signature(candidate.files) for candidate in work}
    saved = time.monotonic()
    try:
        for candidate, outcome in map_cases(
            _import_case, str(report.folder / "labelsTr"), work, num_processes, "Checking volumes"
        ):
            report.checked += 1
            if isinstance(outcome, InputError):
                outcome = {"status": "left out", "reason": str(outcome)}
            elif isinstance(outcome, Exception):
                # Not the file's fault for certain (memory, disk, permission): the next run tries again.
                reason = str(outcome) if isinstance(outcome, AliceError) else f"{type(outcome).__name__}: {outcome}"
                outcome = {"status": "left out", "reason": reason, "retry": True}
            report.cases[candidate.name] = outcome | {"files": signatures[candidate.name]}
            if time.monotonic() - saved > SAVE_EVERY_S:
                report.save()
                saved = time.monotonic()
    finally:
        report.save()


def _import_case(labels: str, candidate: Candidate) -> dict[str, Any]:
    """Check one case and write its body mask; runs in a worker process."""
    images = read_case(candidate.files)
    first = images[0]
    axes = orientation(first)
    # ITK's x, y, z are the array's last to first axes.
    axial_axis = 2 - next(i for i, letter in enumerate(axes) if letter in "SI")
    spacing_mm = first.GetSpacing()[::-1]
    arrays = [sitk.GetArrayViewFromImage(image) for image in images]
    mask = body_mask(arrays[0] if len(arrays) == 1 else np.stack(arrays), spacing_mm, axial_axis=axial_axis)
    label = sitk.GetImageFromArray(mask.astype(np.uint8))
    label.CopyInformation(first)
    _write_label(label, Path(labels) / f"{candidate.name}{LABEL_ENDING}")
    return {
        "status": "imported",
        "orientation": axes,
        "shape": list(mask.shape),
        "spacing_mm": list(spacing_mm),
        "body_share": round(float(mask.mean()), 4),
    }


def _write_label(label: sitk.Image, path: Path) -> None:
    """Write a label and make sure that it reads back on the same grid: NIfTI keeps directions in single precision."""
    with atomic_write(path) as temporary:
        sitk.WriteImage(label, str(temporary), True)
        back = sitk.ImageFileReader()
        back.SetFileName(str(temporary))
        back.ReadImageInformation()
        difference = grid_difference(label, back)
        if difference:
            raise InputError(f"its grid cannot be kept in a NIfTI label, which {difference}.")


def _remove_labels(report: ImportReport, known: dict[str, dict], keep: Sequence[str]) -> None:
    """Remove labels that an earlier import wrote for cases which are neither imported now nor to be kept."""
    keep = {*keep, *report.imported}
    for case, record in known.items():
        if record["status"] == "imported" and case not in keep:
            _label_file(report, case).unlink(missing_ok=True)


def _write_dataset_json(report: ImportReport) -> None:
    """Write ``dataset.json`` of what is imported; none if nothing is."""
    path = report.folder / "dataset.json"
    if not report.imported:
        path.unlink(missing_ok=True)
        return
    mixed = len({report.cases[case]["orientation"] for case in report.imported}) > 1
    if mixed:
        logger.info("The volumes are oriented differently: nnU-Net will turn them all to RAS when reading.")
    write_json(
        path,
        {
            "channel_names": {str(number): channel for number, channel in enumerate(report.channels)},
            "labels": {"background": 0, "body": 1},
            "numTraining": len(report.imported),
            "file_ending": LABEL_ENDING,
            # Named even if nothing is to be turned: nnU-Net would choose by the labels' ending, not the images'.
            "overwrite_image_reader_writer": "SimpleITKIOWithReorient" if mixed else "SimpleITKIO",
            "dataset": {
                case: {
                    "images": [file["path"] for file in report.cases[case]["files"]],
                    "label": f"labelsTr/{case}{LABEL_ENDING}",
                }
                for case in report.imported
            },
        },
    )
