"""Is this file a volume that nnU-Net can train on? One sentence says why not."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_alice.anatomy.orientation import orientation
from nnunet_alice.errors import InputError
from nnunet_alice.importing.endings import ENDINGS_OF_IMPORT, data_files, volume_ending
from nnunet_alice.importing.nifti import check_length, check_nifti
from nnunet_alice.words import telling

#: Bytes before the voxels of a GIPL file, whose reader does not notice that voxels are missing.
_GIPL_HEADER = 256
#: Bytes of an NRRD header that are looked at.
_NRRD_HEADER = 1 << 16
#: Reads a file that SimpleITK does not; see :func:`nnunet_alice.importing.mending.read_another_way`.
Fallback = Callable[[Path], sitk.Image | None]


def read_case(files: Sequence[Path], fallback: Fallback | None = None) -> list[sitk.Image]:
    """Read the channels of a case and check them.

    Args:
        files: one file per channel.
        fallback: asked for the image where SimpleITK cannot read a file; None if it cannot, either.

    Returns:
        one 3D image per channel, all on the same grid, finite and not constant.

    Raises:
        InputError: a file is unreadable, truncated, not 3D, zero-sized, holds NaN or Inf, is constant, or the channels
            do not lie on one grid. The message starts with the file's name.
    """
    images = []
    for file in files:
        try:
            images.append(read_volume(file, fallback))
        except InputError as error:
            raise InputError(f"{file.name}: {error}") from None
        if len(images) > 1:
            difference = grid_difference(images[0], images[-1])
            if difference:
                raise InputError(f"{file.name}: {difference}, unlike {files[0].name}.")
    return images


def read_volume(path: Path, fallback: Fallback | None = None) -> sitk.Image:
    """Read one file and check it by itself; see :func:`read_case`.

    Raises:
        InputError: as of :func:`read_case`.
        OSError: it, or a file with its voxels, cannot be read now.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise InputError("is empty (0 bytes).")
    for voxels in data_files(path):
        if voxels.is_file():
            voxels.open("rb").close()  # SimpleITK does not tell whether it may not be read, or is damaged
    ending = (volume_ending(path, ENDINGS_OF_IMPORT) or "").lower()
    if ending.startswith(".nii") or ending == ".hdr":
        check_nifti(path)
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        check_grid(reader)
        if ending in (".nrrd", ".nhdr"):
            _check_nrrd(path)
        image = reader.Execute()
    except InputError:
        raise
    except RuntimeError as error:
        if "allocat" in str(error):  # no fault of the file
            raise MemoryError(f"{path.name} does not fit into memory") from None
        image = None if fallback is None else fallback(path)
        if image is None:
            raise InputError(f"unreadable or truncated ({telling(error)}).") from None
        check_grid(image)
    values = sitk.GetArrayViewFromImage(image)
    if ending.startswith(".gipl"):
        check_length(path, _GIPL_HEADER + values.nbytes)
    low, high = float(values.min()), float(values.max())  # NaN if any voxel is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("holds NaN or Inf.")
    if max(-low, high) > float(np.finfo(np.float32).max):
        raise InputError("holds values beyond single precision, which nnU-Net reads as Inf.")
    if low == high:
        raise InputError(f"is constant (every voxel is {low + 0.0:g}).")
    return image


def check_grid(image: sitk.Image | sitk.ImageFileReader) -> None:
    """Check what the header says.

    Raises:
        InputError: not a 3D volume of one number per voxel, or without extent.
    """
    size, spacing = image.GetSize(), image.GetSpacing()
    if len(size) != 3:
        raise InputError(f"is not 3D: it has {len(size)} dimensions, size {_times(size)}.")
    if min(size) < 1:
        raise InputError(f"is zero-sized: {_times(size)} voxels.")
    if min(size) == 1:
        raise InputError(f"is not 3D: it is a single slice, size {_times(size)}.")
    if isinstance(image, sitk.Image):
        components = image.GetNumberOfComponentsPerPixel()
    else:
        components = image.GetNumberOfComponents()
    if components != 1 or "complex" in sitk.GetPixelIDValueAsString(image.GetPixelID()):
        raise InputError(f"holds {components} numbers per voxel (colour, vectors or complex).")
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"has no usable voxel size: {_times(spacing)} mm.")


def _check_nrrd(path: Path) -> None:
    """Look for voxel sizes that are no numbers: SimpleITK makes 1 of them."""
    with path.open("rb") as file:
        lines = file.read(_NRRD_HEADER).partition(b"\n\n")[0].decode("latin-1").lower().splitlines()
    for line in lines:
        key, _, sizes = line.partition(":")
        if key in ("space directions", "spacings") and ("nan" in sizes or "none" in sizes):
            raise InputError(f"has no usable voxel size ({line.strip()}).")


def grid_difference(first: sitk.Image, second: sitk.Image | sitk.ImageFileReader) -> str | None:
    """Return how the grid of ``second`` differs from that of ``first``, by nnU-Net's measure, or None."""
    if first.GetSize() != second.GetSize():
        return f"has shape {_times(second.GetSize())} and not {_times(first.GetSize())}"
    if not np.allclose(first.GetSpacing(), second.GetSpacing()):
        return f"has voxel size {_times(second.GetSpacing())} mm and not {_times(first.GetSpacing())} mm"
    if orientation(first) != orientation(second):
        return f"is oriented {orientation(second)} and not {orientation(first)}"
    return None


def is_beside(first: sitk.Image, second: sitk.Image) -> bool:
    """Return whether an image of the same size lies half a voxel or more beside the first one, or is rotated."""
    ends = np.asarray(first.GetSize()) - 1
    corners = [[0, 0, 0], *np.diag(ends).tolist()]
    here, there = (
        np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners]) for image in (first, second)
    )
    return bool(np.linalg.norm(here - there, axis=1).max() > min(first.GetSpacing()) / 2)


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
