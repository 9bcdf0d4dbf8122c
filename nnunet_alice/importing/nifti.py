"""Is a NIfTI file whole? Its length, its checksum and every voxel are looked at.

SimpleITK reads a truncated or damaged NIfTI file without complaint, fills the rest with whatever was in memory, and
turns NaN and Inf into 0. So NIfTI files are read through once before. NRRD and MetaImage raise by themselves and keep
NaN.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from nnunet_alice.errors import InputError
from nnunet_alice.importing.endings import WITHOUT_ORIENTATION, data_files

#: Bytes read at once when a file is only read through; a multiple of every voxel's size.
_BLOCK = 1 << 22


def check_nifti(path: Path) -> None:
    """Read a NIfTI file, or a header and its data file, to the end: length, checksum (if compressed), finite voxels.

    Raises:
        OSError: the file cannot be opened.
        InputError: no NIfTI, truncated, damaged, with NaN or Inf, or compressed without saying so.
    """
    voxels = data_files(path)
    with _opened(path) as file:
        header = _NiftiHeader.read(file, single=not voxels)
        if not all(math.isfinite(size) and size != 0 for size in header.voxel_mm):
            raise InputError(f"has no usable voxel size: {' x '.join(f'{size:g}' for size in header.voxel_mm)} mm.")
        if not voxels:
            _check_voxels(file, header, header.offset)
    for data in voxels:
        with _opened(data) as file:
            file.read(header.offset)
            _check_voxels(file, header, header.offset)


def keeps_orientation(path: Path) -> bool:
    """Return whether an image file says how it lies in the body.

    GIPL and Analyze 7.5 do not, nor does NIfTI whose codes of both affines (qform and sform) are 0.
    """
    name = path.name.lower()
    if name.endswith((".hdr", ".nii", ".nii.gz")):
        with _opened(path) as file:
            start = file.read(352)
        if start[344:347] in (b"ni1", b"n+1"):
            return start[252:256] != bytes(4)
        return start[4:7] in (b"ni2", b"n+2") and start[344:352] != bytes(8)
    return not name.endswith(WITHOUT_ORIENTATION)


def check_length(path: Path, expected: int) -> None:
    """Read a file to its end, with its checksum if it is compressed.

    Args:
        path: the file.
        expected: bytes that it has to hold at least, uncompressed.

    Raises:
        InputError: truncated or damaged.
    """
    with _opened(path) as file:
        _finish(sum(map(len, iter(lambda: file.read(_BLOCK), b""))), expected)


def _check_voxels(file: BinaryIO | gzip.GzipFile, header: "_NiftiHeader", length: int) -> None:
    # To the end even beyond the voxels: the checksum is there.
    while block := file.read(_BLOCK):
        voxels = block[: max(0, header.bytes - length)]
        length += len(block)
        kind = header.float_type
        if kind and not np.isfinite(np.frombuffer(voxels, kind, len(voxels) // kind.itemsize)).all():
            raise InputError("holds NaN or Inf.")
    _finish(length, header.bytes)


def _finish(length: int, expected: int) -> None:
    if length < expected:
        raise InputError(f"truncated: it holds {length} of {expected} bytes.")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a file that may be compressed, and say in one sentence what is wrong with what is read from it."""
    with open(path, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if compressed and path.suffix.lower() != ".gz":
            raise InputError(f"is compressed by gzip, but its name does not say so; rename it to {path.name}.gz.")
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"truncated or damaged ({str(error).rstrip('.')}).") from None


@dataclass(frozen=True)
class _NiftiHeader:
    """What the start of a NIfTI-1, NIfTI-2 or Analyze file promises.

    Attributes:
        offset: bytes before the voxels, in the file that holds them.
        bytes: bytes of that whole file, uncompressed.
        float_type: type of the voxels if they are real floating point, else None.
        voxel_mm: voxel size (x, y, z) as it stands there; SimpleITK makes 1 of one that is 0 or no number.
    """

    offset: int
    bytes: int
    float_type: np.dtype | None
    voxel_mm: tuple[float, ...]

    @classmethod
    def read(cls, file: BinaryIO | gzip.GzipFile, single: bool = True) -> "_NiftiHeader":
        """Read the header and, where the voxels are in the same file, go on to the first of them."""
        start = file.read(352)
        for order in "<>" if len(start) >= (352 if single else 348) else "":
            kind = struct.unpack_from(f"{order}i", start)[0]
            if kind == 348:
                dims = struct.unpack_from(f"{order}8h", start, 40)
                code, bits = struct.unpack_from(f"{order}2h", start, 70)
                offset = struct.unpack_from(f"{order}f", start, 108)[0]
                voxel_mm = struct.unpack_from(f"{order}3f", start, 80)
            elif kind == 540:
                code, bits = struct.unpack_from(f"{order}2h", start, 12)
                dims = struct.unpack_from(f"{order}8q", start, 16)
                offset = struct.unpack_from(f"{order}q", start, 168)[0]
                voxel_mm = struct.unpack_from(f"{order}3d", start, 112)
            else:
                continue
            if not math.isfinite(offset) or not 1 <= dims[0] <= 7:
                break
            offset = max(int(offset), len(start) if single else 0)
            if single:
                file.read(offset - len(start))
            voxels = math.prod(max(1, n) for n in dims[1 : 1 + dims[0]])
            float_type = {16: np.dtype(f"{order}f4"), 64: np.dtype(f"{order}f8")}.get(code)
            return cls(offset, offset + voxels * bits // 8, float_type, voxel_mm[: dims[0]])
        raise InputError("unreadable: it is not a NIfTI file.")
