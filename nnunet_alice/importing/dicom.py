"""DICOM series of a folder become volumes of the dataset, under names that tell nothing of a patient.

A table beside nnU-Net's datasets keeps which name stands for which series; it is the only file with identifiers in it.
"""

import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_alice.errors import InputError
from nnunet_alice.importing.dicom_names import NameTable
from nnunet_alice.importing.dicom_slices import Slice, read_slice, series_of_file
from nnunet_alice.importing.dicom_stack import read_stack, stack
from nnunet_alice.importing.intensities import is_ct
from nnunet_alice.importing.mending import write_image
from nnunet_alice.importing.scan import Candidate
from nnunet_alice.parallel import Outcomes, for_each_case
from nnunet_alice.words import counted, telling

logger = logging.getLogger(__name__)

#: Raised when a check changes, so that series that were left out are looked at again.
VERSION = 1
#: Folder of the volumes in the dataset; of the tables, beside the datasets
VOLUME_FOLDER, TABLE_FOLDER = "volumes_from_dicom", "private"


@dataclass(frozen=True)
class DicomJob:
    """What all series are converted with.

    Attributes:
        volumes: folder to write into.
        channel: name of the channel; CT and other series exclude each other.
        derived: take series that were computed from others, too.
    """

    volumes: Path
    channel: str
    derived: bool = False

    def volume(self, case: str) -> Path:
        """Return the file of a case's volume."""
        return self.volumes / f"{case}.nii.gz"


@dataclass(frozen=True)
class Series:
    """A series to be converted.

    Attributes:
        case: its name in the dataset.
        uid: its identifier.
        files: its files, in any order.
    """

    case: str
    uid: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return self.case


class Folder(NamedTuple):
    """Files of one folder.

    Attributes:
        path: the folder.
        names: of the files.
    """

    path: Path
    names: tuple[str, ...]

    def __str__(self) -> str:
        return str(self.path)


def dicom_cases(
    paths: Collection[Path],
    dataset_folder: Path,
    channel: str,
    num_processes: int,
    taken: Collection[str] = (),
    derived: bool = False,
) -> list[Candidate]:
    """Convert what is new of the DICOM series among files; return one candidate a series, good or bad.

    Memory holds the names of all DICOM files, about 20 kB a volume, and one volume a process.

    Args:
        paths: files, DICOM or not.
        dataset_folder: of the dataset in ``nnUNet_raw``.
        channel: name of the channel.
        num_processes: processes that read.
        taken: names that other cases have.
        derived: take series that were computed from others, too.

    Raises:
        InputError: a file cannot be read now.
    """
    found = find_series(paths, num_processes)
    if not found:
        return []
    job = DicomJob(dataset_folder / VOLUME_FOLDER, channel, derived)
    table = NameTable(dataset_folder.parent / TABLE_FOLDER / f"{dataset_folder.name}_dicom.csv")
    table.name_all(found, taken)
    states = {uid: _state(files, job) for uid, files in found.items()}
    work = []
    for uid, files in found.items():
        row = table.rows[uid]
        if row["state"] != states[uid] or not (row["problem"] or job.volume(row["case"]).is_file()):
            work.append(Series(row["case"], uid, tuple(files)))
    _convert_all(job, work, table, states, num_processes)
    gone = [row["case"] for uid, row in table.rows.items() if uid not in found and job.volume(row["case"]).is_file()]
    logger.info(
        "DICOM: %s in %s, %d read now; which case is whom: %s",
        counted(len(found), "series", "series"), counted(sum(map(len, found.values())), "file"), len(work), table.path,
    )  # fmt: skip
    if gone:
        logger.warning(
            "%s gone; their volumes in %s are not used any more: delete them.",
            counted(len(gone), "DICOM series is", "DICOM series are"), job.volumes,
        )  # fmt: skip
    rows = (table.rows[uid] for uid in found)
    return [Candidate(row["case"], (job.volume(row["case"]),), row["problem"] or None) for row in rows]


def holds_dicom(dataset_folder: Path) -> bool:
    """Return whether an earlier import into a dataset's folder took DICOM series."""
    return (dataset_folder / VOLUME_FOLDER).is_dir()


def find_series(paths: Collection[Path], num_processes: int) -> dict[str, list[Path]]:
    """Return those of the files that are DICOM by their series.

    Raises:
        InputError: a file cannot be read now: it may be a slice of any series, which would seem whole without it.
    """
    folders: dict[Path, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path.name)
    series: dict[str, list[Path]] = defaultdict(list)
    work = [Folder(folder, tuple(names)) for folder, names in folders.items()]
    searched = for_each_case(_series_in, work, doing="Looking for DICOM", num_processes=num_processes)
    for blocked, reason in searched.failed.items():
        raise InputError(
            f"{blocked} cannot be searched for DICOM ({reason}); make all its files readable, or move them away, and "
            "import again."
        ).about(path=blocked)
    for folder, found in searched.results.items():
        for uid, names in found.items():
            series[uid] += [Path(folder) / name for name in names]
    return dict(series)


def _series_in(folder: Folder) -> dict[str, list[str]]:
    """Return series -> names of its files in one folder; runs in a worker process."""
    series: dict[str, list[str]] = defaultdict(list)
    for name in folder.names:
        if uid := series_of_file(folder.path / name):
            series[uid].append(name)
    return dict(series)


def _state(files: list[Path], job: DicomJob) -> str:
    """Return what a verdict depends on, in one line."""
    sizes, times = [], []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue
        sizes.append(status.st_size)
        times.append(status.st_mtime_ns)
    return f"{VERSION} {job.channel} {job.derived} {len(sizes)} {sum(sizes)} {max(times, default=0)}"


def _convert_all(
    job: DicomJob, work: list[Series], table: NameTable, states: dict[str, str], num_processes: int
) -> None:
    """Convert series and note in the table what became of them."""

    def save(outcomes: Outcomes[dict[str, str]]) -> None:
        for series in work:
            if (told := outcomes.results.get(series.case)) is not None:
                table.rows[series.uid] |= {"state": states[series.uid]} | told
        table.save()

    for_each_case(
        partial(_convert, job),
        work,
        doing="Reading DICOM",
        num_processes=num_processes,
        rescue=lambda _, error: {"problem": telling(error), "state": ""},  # memory, disk: the next import tries again
        report=save,
    )


def _convert(job: DicomJob, series: Series) -> dict[str, str]:
    """Write the volume of a series; returns what the table says of it. Runs in a worker process."""
    try:
        slices = [read_slice(path) for path in series.files]
    except InputError as error:
        return {"slices": str(len(series.files)), "problem": f"one of its files {error}"}
    row = _described(slices)
    try:
        _check_modality(slices[0], job.channel)
        ordered = stack(slices, job.derived)
        write_image(read_stack(ordered, slices[0].syntax), job.volume(series.case))
    except InputError as error:
        return row | {"problem": str(error)}
    return row | {"problem": ""}


def _described(slices: list[Slice]) -> dict[str, Any]:
    """Return the table's words on a series."""
    first = slices[0]
    told = {name: getattr(first, name) for name in ("patient", "date", "study", "number", "description", "modality")}
    return told | {"slices": str(len(slices)), "folder": str(first.path.parent)}


def _check_modality(first: Slice, channel: str) -> None:
    """Refuse CT beside other modalities, which are normalised differently."""
    if (first.modality == "CT") != is_ct(channel):
        raise InputError(f"is {first.modality or 'of no named modality'}, and the channel is {channel}.").about(
            value=channel
        )
