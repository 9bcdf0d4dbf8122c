"""Is this file a volume that nnU-Net can train on? One sentence says why not.

SimpleITK reads a truncated or damaged NIfTI file without complaint, fills the rest with whatever was in memory, and
turns NaN and Inf into 0. So NIfTI files are read through once before, to the end, with their checksum and looking at
every voxel. NRRD and MetaImage raise by themselves and keep NaN.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from nnunet_alice.errors import InputError

#: Endings that are taken for volumes.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
#: Bytes read at once when a file is only read through; a multiple of every voxel's size.
_BLOCK = 1 << 22


def volume_ending(path: Path) -> str | None:
    """Ending of a volume file as it is written in its name; None if it is no volume."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[-len(ending) :]
    return None


def read_case(files: Sequence[Path]) -> list[sitk.Image]:
    """Read the channels of a case and check them.

    Args:
        files: one file per channel.

    Returns:
        one 3D image per channel, all on the same grid, finite and not constant.

    Raises:
        InputError: a file is unreadable, truncated, not 3D, zero-sized, holds NaN or Inf, is constant, or the channels
            do not lie on one grid. The message starts with the file's name.
    """
    images = []
    for file in files:
        try:
            images.append(read_volume(file))
        except InputError as error:
            raise InputError(f"{file.name}: {error}") from None
        if len(images) > 1:
            difference = grid_difference(images[0], images[-1])
            if difference:
                raise InputError(f"{file.name}: {difference}, unlike {files[0].name}.")
    return images


def read_volume(path: Path) -> sitk.Image:
    """Read one file and check it by itself; see :func:`read_case`."""
    with open(path, "rb") as file:
        if not file.read(1):
            raise InputError("is empty (0 bytes).")
    if volume_ending(path).lower().startswith(".nii"):
        check_nifti(path)
    check_header(path)
    try:
        image = sitk.ReadImage(str(path))
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"unreadable or truncated ({_one_line(error)}).") from None
    values = sitk.GetArrayViewFromImage(image)
    low, high = float(values.min()), float(values.max())  # NaN if any voxel is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("holds NaN or Inf.")
    if max(-low, high) > float(np.finfo(np.float32).max):
        raise InputError("holds values beyond single precision, which nnU-Net reads as Inf.")
    if low == high:
        raise InputError(f"is constant (every voxel is {low:g}).")
    return image


def check_header(path: Path) -> None:
    """Check what the header says, without reading voxels.

    Raises:
        InputError: unreadable, not a 3D volume of one number per voxel, or without extent.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"unreadable or truncated ({_one_line(error)}).") from None
    size, spacing = reader.GetSize(), reader.GetSpacing()
    if len(size) != 3:
        raise InputError(f"is not 3D: it has {len(size)} dimensions, size {_times(size)}.")
    if min(size) < 1:
        raise InputError(f"is zero-sized: {_times(size)} voxels.")
    if min(size) == 1:
        raise InputError(f"is not 3D: it is a single slice, size {_times(size)}.")
    if reader.GetNumberOfComponents() != 1 or "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(f"holds {reader.GetNumberOfComponents()} numbers per voxel (colour, vectors or complex).")
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise InputError(f"has no usable voxel size: {_times(spacing)} mm.")


def check_nifti(path: Path) -> None:
    """Read a NIfTI file to its end: length, checksum (if compressed) and finite voxels.

    Raises:
        OSError: the file cannot be opened.
        InputError: no NIfTI, truncated, damaged, or with NaN or Inf.
    """
    with open(path, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if compressed else raw
        try:
            header = _NiftiHeader.read(file)
            length = header.offset
            # To the end even beyond the voxels: the checksum is there.
            while block := file.read(_BLOCK):
                voxels = block[: max(0, header.bytes - length)]
                length += len(block)
                if (
                    header.float_type
                    and not np.isfinite(
                        np.frombuffer(voxels, header.float_type, len(voxels) // header.float_type.itemsize)
                    ).all()
                ):
                    raise InputError("holds NaN or Inf.")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"truncated or damaged ({_one_line(error)}).") from None
    if length < header.bytes:
        raise InputError(f"truncated: it holds {length} of {header.bytes} bytes.")


@dataclass(frozen=True)
class _NiftiHeader:
    """What the start of a single-file NIfTI-1 or NIfTI-2 file promises.

    Attributes:
        offset: bytes before the voxels.
        bytes: bytes of the whole file, uncompressed.
        float_type: type of the voxels if they are real floating point, else None.
    """

    offset: int
    bytes: int
    float_type: np.dtype | None

    @classmethod
    def read(cls, file: BinaryIO) -> "_NiftiHeader":
        """Read the header and go on to the first voxel."""
        start = file.read(352)
        for order in "<>" if len(start) == 352 else "":
            kind = struct.unpack_from(f"{order}i", start)[0]
            if kind == 348:
                dims = struct.unpack_from(f"{order}8h", start, 40)
                code, bits = struct.unpack_from(f"{order}2h", start, 70)
                offset = struct.unpack_from(f"{order}f", start, 108)[0]
            elif kind == 540:
                code, bits = struct.unpack_from(f"{order}2h", start, 12)
                dims = struct.unpack_from(f"{order}8q", start, 16)
                offset = struct.unpack_from(f"{order}q", start, 168)[0]
            else:
                continue
            if not math.isfinite(offset) or not 1 <= dims[0] <= 7:
                break
            offset = max(int(offset), len(start))
            file.read(offset - len(start))
            voxels = math.prod(max(1, n) for n in dims[1 : 1 + dims[0]])
            float_type = {16: np.dtype(f"{order}f4"), 64: np.dtype(f"{order}f8")}.get(code)
            return cls(offset, offset + voxels * bits // 8, float_type)
        raise InputError("unreadable: it is not a NIfTI file.")


def orientation(image: sitk.Image | sitk.ImageFileReader) -> str:
    """Three letters for where x, y and z of an image, or of a header that was read, point to, e.g. ``LPS``."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def grid_difference(first: sitk.Image, second: sitk.Image | sitk.ImageFileReader) -> str | None:
    """How the grid of ``second`` differs from that of ``first``, as nnU-Net compares them; None if it does not."""
    if first.GetSize() != second.GetSize():
        return f"has shape {_times(second.GetSize())} and not {_times(first.GetSize())}"
    if not np.allclose(first.GetSpacing(), second.GetSpacing()):
        return f"has voxel size {_times(second.GetSpacing())} mm and not {_times(first.GetSpacing())} mm"
    if orientation(first) != orientation(second):
        return f"is oriented {orientation(second)} and not {orientation(first)}"
    return None


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)


def _one_line(error: Exception) -> str:
    """The telling part of an ITK message, which otherwise is several lines of source files and addresses."""
    text = str(error).strip() or type(error).__name__
    text = re.split(r"ERROR: ", text)[-1]
    text = re.sub(r"\w+\(0x[0-9a-f]+\):\s*", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else text)[:200].rstrip(".")
