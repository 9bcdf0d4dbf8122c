"""Where the axes of an image point to, in three letters, and what nnU-Net's readers make of them.

The letters are those of DICOM and ITK: ``LPS`` says that x runs to the patient's left, y to the back, z to the head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import SimpleITK as sitk

#: Key of plans that says how the images lie that nnU-Net's reader gives; absent in plans that stock nnU-Net made.
ORIENTATION = "orientation"
#: nnU-Net's readers that turn every image, and how it lies then.
TURNING_READERS, TURNED = ("SimpleITKIOWithReorient", "NibabelIOWithReorient"), "RAS"


def is_orientation(letters: str) -> bool:
    """Return whether these are three letters, one for each axis of the body."""
    return sorted("RLAPSI".find(letter) // 2 for letter in letters) == [0, 1, 2]


def orientation(image: sitk.Image | sitk.ImageFileReader) -> str:
    """Return the letters of x, y and z of an image, or of a header that was read, e.g. ``LPS``."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def file_orientation(path: str | Path) -> str | None:
    """Return the letters of an image file, from its header alone; None where it has none that can be read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        return orientation(reader) if len(reader.GetSize()) == 3 else None
    except RuntimeError:
        pass  # nibabel reads some that SimpleITK does not, and nnU-Net may read by it
    try:
        image: Any = nibabel.load(path)
        return "".join(map(str, nibabel.aff2axcodes(image.affine)))
    except Exception:  # nibabel raises whatever its parsers raise
        return None


def orientation_as_read(letters: str, reader: str) -> str:
    """Return the letters of the array that a reader of nnU-Net gives of an image with these letters."""
    return TURNED if reader in TURNING_READERS else letters


def axial_axis(letters: str) -> int:
    """Return the axis of the array (0, 1 or 2 of z, y, x) that runs along the body."""
    # ITK's x, y, z are the array's last to first axes.
    return 2 - next(place for place, letter in enumerate(letters) if letter in "SI")


def axial_axis_of_plans(plans: Mapping[str, Any]) -> int:
    """Return the axis of preprocessed arrays that runs along the body; of unknown orientation, the file's first."""
    letters = plans.get(ORIENTATION, "")
    axis = axial_axis(letters) if is_orientation(letters) else 0
    return list(plans["transpose_forward"]).index(axis)


def axes_after_turning(before: str, after: str) -> list[int]:
    """Return which array axis (z, y, x) of an image becomes the first, second and third of its turned array.

    Args:
        before: letters of the image.
        after: letters of the turned image.
    """
    places = {"RLAPSI".find(letter) // 2: 2 - place for place, letter in enumerate(before)}
    return [places["RLAPSI".find(letter) // 2] for letter in reversed(after)]
