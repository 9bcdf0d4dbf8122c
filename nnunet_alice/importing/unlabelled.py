"""A folder of unlabelled volumes becomes an nnU-Net dataset, without copying an image that nnU-Net can read.

The only label is a body mask, so that nnU-Net collects intensities inside the body; `dataset.json` points to the images
where they are. Files that nnU-Net could not train on are left out and named in `import_report.json`.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_alice.anatomy.orientation import is_orientation
from nnunet_alice.errors import InputError, MissingFileError, named
from nnunet_alice.files import write_json
from nnunet_alice.importing.cases import LABEL_ENDING, LABEL_FOLDER, Job, Task, import_case
from nnunet_alice.importing.endings import ENDINGS
from nnunet_alice.importing.intensities import is_ct, outliers
from nnunet_alice.importing.report import IMPORTED, LEFT_OUT, ImportReport, file_states, open_report
from nnunet_alice.importing.scan import Scan
from nnunet_alice.importing.sources import scan_source
from nnunet_alice.nnunet_folders import new_dataset_name, nnunet_folder
from nnunet_alice.parallel import Outcomes, for_each_case
from nnunet_alice.parts import Part
from nnunet_alice.words import counted, telling

logger = logging.getLogger(__name__)


def import_unlabelled(
    folder: str | os.PathLike,
    dataset_id: int,
    *,
    name: str,
    channels: Sequence[str],
    num_processes: int = 4,
    strict: bool = False,
    orient: str | None = None,
    derived: bool = False,
    part: Part | None = None,
) -> ImportReport:
    """Make ``nnUNet_raw/Dataset<id>_<name>`` of a folder of unlabelled volumes.

    >>> import nnunet_alice
    >>> report = nnunet_alice.import_unlabelled("scans", 901, name="Scans", channels=["CT"], num_processes=1)
    >>> report.imported
    ['torso']

    Every file is read once and checked; a bad one never stops the others. Called again, it reads only what is new,
    changed, without label, or was judged by other checks: all else is in the report. The reader in ``dataset.json``
    turns the images if their orientations differ. Nothing of an earlier import is removed before the new state is
    written. Nothing is removed for a folder that cannot be listed or a file that cannot be read now.

    Args:
        folder: searched with its sub-folders; see :mod:`nnunet_alice.importing.sources` for what is found, and
            :func:`nnunet_alice.importing.scan.scan_folder` for the names of cases.
        dataset_id: number of the dataset, 1 to 999.
        name: name of the dataset.
        channels: one name per channel; nnU-Net chooses the normalisation by it (``CT``, or any other name for z-score).
        num_processes: processes that read, each holding one case in memory.
        strict: fail if any case was left out; the others are imported all the same.
        orient: letters, e.g. ``LPS``: images that lie differently are copied, turned; as in the last import if None.
        derived: take DICOM series that were computed from others, too.
        part: read and check this share of the cases only; an import without then makes the dataset of all parts. Not
            for DICOM.

    Returns:
        the report, which is on disk as well.

    Raises:
        InputError: folder, number, name, channels or letters are not usable; the dataset was imported with other
            channels; DICOM cannot be read now, or is wanted in parts; nothing could be imported; or ``strict`` and a
            case was left out.
    """
    source = Path(os.path.abspath(Path(folder).expanduser()))  # noqa: PTH100  links stay as they are
    if not source.is_dir():
        raise MissingFileError(f"{source} is not a folder.").about(path=source)
    if not channels or not all(channel.strip() for channel in channels):
        raise InputError("Name the channels, for instance --channel CT.").about(option="--channel")
    if orient is not None and not is_orientation(orient):
        raise InputError(f"'{orient}' is no orientation; write for example LPS or RAS.").about(value=orient)
    dataset_folder = nnunet_folder("nnUNet_raw") / new_dataset_name(dataset_id, name)
    report = open_report(dataset_folder, source, list(channels), part)
    report.orient = report.orient if orient is None else orient
    scan = scan_source(source, report.folder, channels, num_processes, derived, whole=part is None)
    _check_scan(source, scan)
    report.unlistable = scan.unlistable
    report.other_files = {ending: asdict(others) for ending, others in scan.others.items()}
    job = Job(report.folder, tuple(channels), report.orient)
    earlier = dict(report.cases)
    work = _sort_out(report, job, scan)
    if part is not None:
        own = set(part.share(candidate.name for candidate in scan.cases))
        report.cases = {case: record for case, record in report.cases.items() if case in own}
        work = [task for task in work if str(task) in own]
    _check_and_label(report, job, work, num_processes)
    if part is None:
        _finish(report, job, scan, earlier)
    if strict and report.left_out:
        raise InputError(
            f"{len(report.left_out)} of {counted(len(report.cases), 'case')} were left out and --strict was given; "
            f"reasons: {report.file}."
        ).about(path=report.file, option="--strict", value=len(report.left_out))
    return report


def _check_scan(source: Path, scan: Scan) -> None:
    if str(source) in scan.unlistable:
        raise InputError(f"{source} cannot be listed ({scan.unlistable[str(source)]}).").about(path=source)
    if not scan.cases:
        there = [f"{o.count} {ending}{f' ({o.what})' if o.what else ''}" for ending, o in scan.others.items()]
        blocked = [f"{folder} cannot be listed ({reason})" for folder, reason in scan.unlistable.items()]
        holds = f" It holds {'; '.join(there + blocked)}." if there or blocked else ""
        raise InputError(
            f"{source} holds no volume; names have to end in {', '.join(ENDINGS)}, .mhd, .nhdr, .hdr, .gipl, .mnc or "
            f".mgz, or be DICOM.{holds}"
        ).about(path=source)


def _sort_out(report: ImportReport, job: Job, scan: Scan) -> list[Task]:
    """Record what needs no reading; return what does. Records of earlier imports stay until there are new ones."""
    work = []
    for record in report.cases.values():
        record.pop("kept", None)
    for candidate in scan.cases:
        files = file_states((*candidate.files, *candidate.data_files))
        record = report.cases.get(candidate.name, {})
        if candidate.problem:
            verdict = {"status": LEFT_OUT, "reason": candidate.problem}
            report.cases[candidate.name] = verdict | {"files": files, "basis": job.basis}
        elif record.get("files") != files or not _is_settled(job, candidate.name, record):
            work.append(Task(candidate, record.get("files") == files))
    return work


def _is_settled(job: Job, case: str, record: dict[str, Any]) -> bool:
    """Return whether the same files would give the same again, and all that was written is there."""
    if record.get("basis") != job.basis:
        return False
    if record["status"] != IMPORTED:
        return not record.get("retry")
    lies_right = record["orientation"] == job.orient if job.orient else not record["turned_from"]
    return lies_right and job.holds(case, record)


def _check_and_label(report: ImportReport, job: Job, work: list[Task], num_processes: int) -> None:
    """Read every candidate, write its label, record the outcome."""
    # before they are read: what changes meanwhile (a copy that is still running) is read again by the next import
    states = {str(task): file_states((*task.candidate.files, *task.candidate.data_files)) for task in work}

    def rescue(task: Task, error: Exception) -> dict[str, Any]:
        case = str(task)
        return _verdict(job, case, error, states[case], report.cases.get(case, {}))

    def save(outcomes: Outcomes[dict[str, Any]]) -> None:
        for case, record in outcomes.results.items():
            report.cases[case] = {"files": states[case], "basis": job.basis} | record
        report.read = set(outcomes.results)
        report.save()

    for_each_case(
        partial(import_case, job),
        work,
        doing="Checking volumes",
        num_processes=num_processes,
        rescue=rescue,
        report=save,
    )


def _verdict(job: Job, case: str, error: Exception, files: list[dict], before: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a case that could not be read; ``before`` is the one that it had."""
    if isinstance(error, InputError):
        return {"status": LEFT_OUT, "reason": str(error)}
    # Not the file's fault for certain (memory, disk, permission): the next run tries again.
    reason = telling(error)
    unchanged = before.get("files") == files or any(file["bytes"] is None for file in files)
    if before.get("status") == IMPORTED and unchanged and job.holds(case, {"copied": ""} | before):
        return before | {"kept": reason}
    return {"status": LEFT_OUT, "reason": reason, "retry": True}


def _finish(report: ImportReport, job: Job, scan: Scan, earlier: dict[str, dict]) -> None:
    """Write the new state, say what is gone, and only then remove what it does not need.

    Raises:
        InputError: nothing is imported; then all of an earlier import stays.
    """
    present = {candidate.name for candidate in scan.cases}
    for case in sorted(report.cases.keys() - present):
        folder = _blocked_by(report, case)
        if folder is not None:
            report.cases[case]["kept"] = folder
        else:
            report.gone += [case] if report.cases[case]["status"] == IMPORTED else []
    if not set(report.imported) - set(report.gone):
        stays = " What was imported before stays." if (report.folder / "dataset.json").is_file() else ""
        reasons = "; ".join(f"{case}: {reason.rstrip('.')}" for case, reason in list(report.left_out.items())[:2])
        raise InputError(
            f"None of {counted(len(present), 'case')} in {report.source} could be imported ({reasons}); all reasons: "
            f"{report.file}.{stays}"
        ).about(path=report.file, value=len(present))
    if report.gone:
        logger.warning(
            "%s of the earlier import gone from %s, out of the dataset now: %s.",
            counted(len(report.gone), "case"), report.source, named(report.gone),
        )  # fmt: skip
    for case in report.cases.keys() - present:
        if "kept" not in report.cases[case]:
            del report.cases[case]
    report.outliers = _outliers(report, job.channels)
    _write_dataset_json(report)
    report.save()
    report.drop_parts()
    for case in earlier:
        record = report.cases.get(case, {"status": LEFT_OUT})
        if record["status"] != IMPORTED:
            job.label(case).unlink(missing_ok=True)
        if not record.get("copied"):
            for path in job.copies(case):
                path.unlink(missing_ok=True)
    for case, reason in report.left_out.items():
        logger.warning("Left out %s: %s", case, reason)
    for sentence in report.warnings():
        logger.warning("%s", sentence)


def _blocked_by(report: ImportReport, case: str) -> str | None:
    """Return the folder that cannot be listed in which a case's files may lie; None if there is none."""
    for file in report.cases[case]["files"]:
        above = Path(file["path"]).parents
        for folder in report.unlistable:
            # What was made of files (DICOM series) lies elsewhere, and nothing says in which folders they were.
            if Path(folder) in above or Path(report.source) not in above:
                return folder
    return None


def _outliers(report: ImportReport, channels: Sequence[str]) -> dict[str, str]:
    """Return imported cases whose CT values are unlike those of all others."""
    found: dict[str, str] = {}
    for number, channel in enumerate(channels):
        if is_ct(channel):
            figures = {case: report.cases[case].get("intensities") for case in report.imported}
            found |= outliers(
                {case: [f[number][key] for key in ("low", "median", "high")] for case, f in figures.items() if f}
            )
    return found


def _write_dataset_json(report: ImportReport) -> None:
    """Write ``dataset.json`` of what is imported."""
    mixed = len({report.cases[case]["orientation"] for case in report.imported}) > 1
    if mixed:
        logger.info("The volumes are oriented differently: nnU-Net will turn them all to RAS when reading.")
    write_json(
        report.folder / "dataset.json",
        {
            "channel_names": {str(number): channel for number, channel in enumerate(report.channels)},
            "labels": {"background": 0, "body": 1},
            "numTraining": len(report.imported),
            "file_ending": LABEL_ENDING,
            # Named even if nothing is to be turned: nnU-Net would choose by the labels' ending, not the images'.
            "overwrite_image_reader_writer": "SimpleITKIOWithReorient" if mixed else "SimpleITKIO",
            "dataset": {
                case: {"images": report.cases[case]["images"], "label": f"{LABEL_FOLDER}/{case}{LABEL_ENDING}"}
                for case in report.imported
            },
        },
    )
