"""One case of an import: its files are read and checked, and its label is written."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_alice.anatomy import body
from nnunet_alice.anatomy.body import body_mask, nonzero_mask
from nnunet_alice.anatomy.orientation import axial_axis, orientation
from nnunet_alice.errors import InputError
from nnunet_alice.importing.checks import grid_difference, is_beside
from nnunet_alice.importing.intensities import measure
from nnunet_alice.importing.mending import COPY_ENDING, COPY_FOLDER, write_image
from nnunet_alice.importing.report import IMPORTED
from nnunet_alice.importing.scan import Candidate
from nnunet_alice.importing.turning import read_turned

#: Raised when a check changes, so that what older ones said is looked at again. Masks have a number of their own.
VERSION = 3
#: Labels are always written as this, whatever the images are.
LABEL_ENDING, LABEL_FOLDER = ".nii.gz", "labelsTr"

BESIDE = "headers put its channels beside each other, and nnU-Net stacks them voxel by voxel; see whether they match"


@dataclass(frozen=True)
class Job:
    """What a process needs to know of an import.

    Attributes:
        folder: folder of the dataset.
        channels: names of the channels.
        orient: letters that images are turned to; empty if they stay as they are.
    """

    folder: Path
    channels: tuple[str, ...]
    orient: str

    @property
    def basis(self) -> dict[str, Any]:
        """What every verdict depends on beside the files, as it comes back from JSON."""
        return {"version": [VERSION, body.VERSION], "channels": len(self.channels)}

    def label(self, case: str) -> Path:
        """Label of a case."""
        return self.folder / LABEL_FOLDER / f"{case}{LABEL_ENDING}"

    def copies(self, case: str) -> list[Path]:
        """Copies of a case's channels, where copies are read."""
        return [self.folder / COPY_FOLDER / f"{case}_{n:04d}{COPY_ENDING}" for n in range(len(self.channels))]

    def holds(self, case: str, record: dict[str, Any]) -> bool:
        """Whether label and copies of an imported case are there."""
        return all(path.is_file() for path in (self.label(case), *(self.copies(case) if record["copied"] else ())))


@dataclass(frozen=True)
class Task:
    """A case to import.

    Attributes:
        candidate: its files.
        unchanged: whether these are the files that its label was made from, if there is one.
    """

    candidate: Candidate
    unchanged: bool

    def __str__(self) -> str:
        return self.candidate.name


def import_case(job: Job, task: Task) -> dict[str, Any]:
    """Check one case and write its body mask, and copies where nnU-Net cannot read the files; runs in a worker process.

    Returns:
        its record, see :class:`nnunet_alice.importing.report.ImportReport`.

    Raises:
        InputError: the case cannot be imported.
    """
    candidate = task.candidate
    turned = read_turned(candidate.files, job.orient)
    paths = turned.files(candidate.files, lambda number: job.copies(candidate.name)[number])
    images = turned.images
    first = images[0]
    letters, spacing_mm = orientation(first), first.GetSpacing()[::-1]
    arrays = [sitk.GetArrayViewFromImage(image) for image in images]
    stacked = arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    mask = body_mask(stacked, spacing_mm, axial_axis=axial_axis(letters))
    # What nnU-Net cuts away as zero must not count as body, or its z-score would differ from that of labelled data.
    inside = nonzero_mask(stacked)
    mask = mask & inside if (mask & inside).any() else inside
    label = sitk.GetImageFromArray(mask.astype(np.uint8))
    label.CopyInformation(first)
    _write_label(label, job.label(candidate.name), task.unchanged)
    measured = [measure(array, mask, channel) for array, channel in zip(arrays, job.channels, strict=True)]
    hints = {hint: None for _, found in measured for hint in found}
    if turned.assumed:
        hints[turned.assumed] = None
    if any(is_beside(first, image) for image in images[1:]):
        hints[BESIDE] = None
    return {
        "status": IMPORTED,
        "images": [str(path.relative_to(job.folder)) if turned.done else str(path) for path in paths],
        "copied": "; ".join(turned.done),
        "turned_from": turned.lay if turned.lay != letters else "",
        "orientation": letters,
        "shape": list(mask.shape),
        "spacing_mm": list(spacing_mm),
        "body_share": round(float(mask.mean()), 4),
        "intensities": [asdict(figures) for figures, _ in measured],
        "hints": list(hints),
    }


def _write_label(label: sitk.Image, path: Path, unchanged: bool) -> None:
    """Write a label and make sure that it reads back on the same grid: NIfTI keeps directions in single precision.

    The one that is there stays if it says the same of the same image: a newer file would be preprocessed again.
    """
    if unchanged and path.is_file():
        with contextlib.suppress(RuntimeError):
            # a copy of its voxels: a view would outlive the image that was just read
            if np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), sitk.GetArrayViewFromImage(label)):
                return
    write_image(label, path)
    back = sitk.ImageFileReader()
    back.SetFileName(str(path))
    back.ReadImageInformation()
    difference = grid_difference(label, back)
    if difference:
        path.unlink()
        raise InputError(f"its grid cannot be kept in a NIfTI label, which {difference}.")
