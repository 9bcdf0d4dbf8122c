"""Headers of DICOM files: which files hold slices, and what each says of itself. Pixels are not read here."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_alice.errors import InputError

#: Endings of DICOM files; those of other names are known by the four letters behind their preamble.
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
#: What tells slices of one series at one place apart, in words.
_ACQUISITION = {
    "AcquisitionNumber": "acquisition",
    "EchoTime": "echo time",
    "DiffusionBValue": "b-value",
    "TemporalPositionIdentifier": "time point",
    "TriggerTime": "trigger time",
    "ImageType": "image type",
}
_TAGS = [
    *("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "StudyDate", "SeriesNumber"),
    *("SeriesDescription", "Modality", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"),
    *("ImagePositionPatient", "NumberOfFrames", "SamplesPerPixel", *_ACQUISITION),
]


@dataclass(frozen=True)
class Slice:
    """What a DICOM file says of itself. Axes are DICOM's: x to the left, y to the back, z to the head, in mm.

    Attributes:
        path: the file.
        instance: identifier of this slice; two files with the same one are copies.
        study, patient, date, number, description: of the series, as texts.
        modality: ``CT``, ``MR``, ``PT``, ...
        image_type: e.g. ``("ORIGINAL", "PRIMARY", "AXIAL")``.
        size: rows and columns.
        spacing_mm: distance of rows and of columns; empty if it is not told.
        orientation: direction of a row and of a column, six numbers; empty if it is not told.
        position_mm: centre of the first voxel; empty if it is not told.
        frames: images in the file.
        samples: numbers a voxel.
        syntax: identifier of the transfer syntax.
        acquisition: what tells slices at one place apart: words -> value.
    """

    path: Path
    instance: str
    study: str
    patient: str
    date: str
    number: str
    description: str
    modality: str
    image_type: tuple[str, ...]
    size: tuple[int, int]
    spacing_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    position_mm: tuple[float, ...]
    frames: int
    samples: int
    syntax: str
    acquisition: dict[str, str]


def read_slice(path: Path) -> Slice:
    """Read the header of a DICOM file.

    Raises:
        InputError: it is none, or truncated within the header.
    """
    dataset = _header(path, _TAGS)
    if dataset is None:
        raise InputError("is no DICOM file.")
    meta = getattr(dataset, "file_meta", None)
    text = {name: str(dataset.get(name) or "").strip() for name in _TAGS}
    return Slice(
        path=path,
        instance=text["SOPInstanceUID"],
        study=text["StudyInstanceUID"],
        patient=text["PatientID"],
        date=text["StudyDate"],
        number=text["SeriesNumber"],
        description=text["SeriesDescription"],
        modality=text["Modality"],
        image_type=tuple(map(str, dataset.get("ImageType") or ())),
        size=(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
        spacing_mm=_numbers(dataset, "PixelSpacing", 2),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        position_mm=_numbers(dataset, "ImagePositionPatient", 3),
        frames=int(dataset.get("NumberOfFrames") or 1),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        syntax=str(meta.get("TransferSyntaxUID", "")) if meta is not None else "",
        acquisition={words: text[name] for name, words in _ACQUISITION.items() if text[name]},
    )


def series_of_file(path: Path) -> str | None:
    """Return the identifier of the series that a file belongs to; None if it is no DICOM file of a series."""
    dataset = _header(path, ["SeriesInstanceUID"])
    return None if dataset is None else str(dataset.get("SeriesInstanceUID") or "").strip() or None


def _header(path: Path, tags: list[str]) -> Any:
    """Return the named entries of a file's header; None if it is no DICOM file."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with path.open("rb") as file:
            start = file.read(132)
        known = start[128:] == b"DICM"
        if not known and path.suffix.lower() not in DICOM_ENDINGS:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that are not quite as the standard wants them
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=not known)
    except (InvalidDicomError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError):
        return None  # a text that is named .ima, a header that is cut off


def _numbers(dataset: Any, name: str, count: int) -> tuple[float, ...]:
    """Return an entry of several numbers; empty if it is missing or not such a one."""
    try:
        values = tuple(float(value) for value in dataset.get(name))
    except (TypeError, ValueError):
        return ()
    return values if len(values) == count else ()
