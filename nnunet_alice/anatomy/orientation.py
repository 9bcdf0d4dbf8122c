"""Where the axes of an image point to, in three letters, and what nnU-Net's readers make of them.

The letters are those of DICOM and ITK: ``LPS`` says that x runs to the patient's left, y to the back, z to the head.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import nibabel
import SimpleITK as sitk
from nibabel.spatialimages import SpatialImage

#: Key of plans that says how the images lie that nnU-Net's reader gives; absent in plans that stock nnU-Net made.
ORIENTATION = "orientation"
#: nnU-Net's readers that turn every image, and how it lies then.
TURNING_READERS, TURNED = ("SimpleITKIOWithReorient", "NibabelIOWithReorient"), "RAS"
#: How the names of those readers end.
_TURNS = "WithReorient"
#: In the place of letters: images of a dataset lie differently and are not turned; nothing says how they lie.
MIXED, UNKNOWN = "mixed", ""


def is_orientation(letters: str) -> bool:
    """Return whether these are three letters, one for each axis of the body."""
    return sorted("RLAPSI".find(letter) // 2 for letter in letters) == [0, 1, 2]


def orientation(image: sitk.Image | sitk.ImageFileReader) -> str:
    """Return the letters of x, y and z of an image, or of a header that was read, e.g. ``LPS``."""
    return direction_letters(image.GetDirection())


def direction_letters(direction: Iterable[float]) -> str:
    """Return the letters of x, y and z of nine direction cosines, row by row."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(value) for value in direction])


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
        return "".join(map(str, nibabel.aff2axcodes(cast(SpatialImage, nibabel.load(path)).affine)))
    except Exception:  # nibabel raises whatever its parsers raise
        return None


def orientation_as_read(letters: str, reader: str) -> str:
    """Return the letters of the array that a reader of nnU-Net gives of an image with these letters."""
    return TURNED if reader in TURNING_READERS else letters


def differ(one: str, other: str) -> bool:
    """Return whether two orientations are known and not the same."""
    return is_orientation(one) and is_orientation(other) and one != other


def reader_that_gives(letters: str, reader: str) -> str:
    """Return the reader of nnU-Net that gives arrays of an orientation, if one does, or else leaves them as they lie.

    Args:
        letters: the orientation wanted; of no orientation, the reader stays.
        reader: name of the reader so far, which says in what formats the files are.
    """
    plain = reader.removesuffix(_TURNS)
    if not is_orientation(letters) or f"{plain}{_TURNS}" not in TURNING_READERS:
        return reader
    return f"{plain}{_TURNS}" if letters == TURNED else plain


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
