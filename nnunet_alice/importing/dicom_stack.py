"""Slices of a DICOM series in order, on one regular grid; or one sentence that says why they make no volume."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_alice.errors import InputError
from nnunet_alice.importing.dicom_slices import Slice
from nnunet_alice.words import counted, telling

#: Modalities whose series are volumes.
VOLUMES = ("CT", "MR", "PT")
#: Fewest slices of a volume; less is a localiser or a sample.
MIN_SLICES = 4
#: Neighbouring slices may lie this share of their distance nearer or farther than the others.
_UNEVEN = 0.1
#: A gap of so many distances or more lacks a slice.
_MISSING = 1.5
#: Direction cosines of slices that lie in parallel differ by less.
_PARALLEL = 1e-3


@dataclass(frozen=True)
class Stack:
    """Slices that make a volume. Axes are x, y, z as SimpleITK's.

    Attributes:
        files: one a slice, in order.
        spacing_mm: (x, y, z).
        origin_mm: centre of the first voxel.
        direction: nine numbers, row by row; its columns are the directions of x, y and z.
    """

    files: tuple[Path, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]


def stack(slices: Sequence[Slice], derived: bool = False) -> Stack:
    """Put the slices of a series in order.

    Args:
        slices: of one series, in any order.
        derived: take series that were computed from others, too.

    Raises:
        InputError: they make no volume on a regular grid.
    """
    _check_kind(slices[0], derived)
    single = list({found.instance or str(found.path): found for found in slices}.values())
    _check_alike(single)
    row, column = (np.array(single[0].orientation[part]) for part in (slice(0, 3), slice(3, 6)))
    normal = np.cross(row, column)
    single.sort(key=lambda found: float(np.dot(found.position_mm, normal)))
    positions = np.array([found.position_mm for found in single])
    depths = positions @ normal
    _check_doubled(single, depths)
    if len(single) < MIN_SLICES:
        raise InputError(f"holds {counted(len(single), 'slice')}, fewer than {MIN_SLICES} (a localiser?).")
    _check_even(depths)
    _check_straight(positions, depths, normal, max(single[0].spacing_mm))
    between = float(depths[-1] - depths[0]) / (len(single) - 1)
    down, across = single[0].spacing_mm
    return Stack(
        tuple(found.path for found in single),
        (across, down, between),
        tuple(positions[0].tolist()),
        tuple(np.stack([row, column, normal], axis=1).ravel().tolist()),
    )


def read_stack(found: Stack, syntax: str) -> sitk.Image:
    """Read the voxels of a stack; slope and intercept of each slice are applied.

    Args:
        found: from ``stack``.
        syntax: identifier of the transfer syntax, for the message.

    Returns:
        16-bit integers where they keep every value, else single precision.

    Raises:
        InputError: a slice is truncated, or compressed in a way that SimpleITK does not decode.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    volume = np.empty((0, 0, 0), dtype=np.float32)
    for number, path in enumerate(found.files):
        reader.SetFileName(str(path))
        try:
            image = reader.Execute()
        except RuntimeError as error:
            if "allocat" in str(error):
                raise MemoryError("a slice does not fit into memory") from None
            raise InputError(_unreadable(syntax, number, error)) from None
        values = sitk.GetArrayViewFromImage(image)
        if not volume.size:
            volume = np.empty((len(found.files), *values.shape[-2:]), dtype=np.float32)
        volume[number] = values.reshape(values.shape[-2:])
    image = sitk.GetImageFromArray(_smaller(volume))
    image.SetSpacing(found.spacing_mm)
    image.SetOrigin(found.origin_mm)
    image.SetDirection(found.direction)
    return image


def _check_kind(first: Slice, derived: bool) -> None:
    """Refuse a series of an unsuitable kind."""
    kind = "\\".join(first.image_type)
    if first.modality not in VOLUMES:
        raise InputError(f"is no volume but {first.modality or 'of no named modality'}.")
    if "LOCALIZER" in first.image_type:
        raise InputError(f"is a localiser ({kind}).")
    if first.image_type[:1] == ("DERIVED",) and not derived:
        raise InputError(f"is derived from a different series ({kind}); --derived takes it.")
    if first.frames > 1:
        raise InputError("is one file of many frames (enhanced DICOM), which is not read; convert it with dcm2niix.")
    if first.samples > 1:
        raise InputError(f"holds {first.samples} numbers per voxel (colour).")


def _check_alike(slices: Sequence[Slice]) -> None:
    """Refuse slices that differ in size, voxels or orientation, or have no place."""
    lacking = [
        f"{words} of {counted(count, 'slice')}"
        for words, count in (
            ("position", sum(not found.position_mm for found in slices)),
            ("orientation", sum(not found.orientation for found in slices)),
            ("voxel size", sum(not found.spacing_mm for found in slices)),
        )
        if count
    ]
    if lacking:
        raise InputError(f"does not tell the {', the '.join(lacking)}.")
    directions = np.array([found.orientation for found in slices])
    rounded = Counter(map(tuple, np.round(directions / 0.02).astype(int).tolist()))
    if np.abs(directions - directions[0]).max() > _PARALLEL:
        raise InputError(f"its slices lie in {max(2, len(rounded))} directions (a localiser?).")
    sizes = Counter(found.size for found in slices)
    if len(sizes) > 1:
        raise InputError(f"its slices have {len(sizes)} sizes ({', '.join(f'{r} x {c}' for r, c in sizes)}).")
    spacings = np.array([found.spacing_mm for found in slices])
    if not (spacings > 0).all() or np.abs(spacings / spacings[0] - 1).max() > 1e-3:
        raise InputError("its slices have different voxel sizes.")


def _check_doubled(slices: Sequence[Slice], depths: np.ndarray) -> None:
    """Refuse two slices at one place; ``depths`` are sorted."""
    places = np.round(depths / 0.01).astype(int).tolist()
    count = Counter(places)
    most = max(count.values())
    if most == 1:
        return
    there = [found.acquisition for found, place in zip(slices, places, strict=True) if count[place] == most]
    apart = [words for words in there[0] if len({found.get(words) for found in there}) > 1]
    why = f"they differ in {' and '.join(apart)}: several volumes in one series" if apart else "doubled slices"
    doubled = sum(number > 1 for number in count.values())
    raise InputError(f"holds up to {most} slices at one place, at {doubled} of {counted(len(count), 'place')} ({why}).")


def _check_even(depths: np.ndarray) -> None:
    """Refuse slices at unequal distances, or missing ones."""
    gaps = np.diff(depths)
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps >= _MISSING * usual)
    if len(wide):
        missing = int(sum(round(gaps[index] / usual) - 1 for index in wide)) or len(wide)
        where = ", ".join(f"{depths[index]:.1f} and {depths[index + 1]:.1f} mm" for index in wide[:3])
        raise InputError(
            f"lacks about {counted(missing, 'slice')}: between {where}{' and elsewhere' if len(wide) > 3 else ''}, "
            f"where others are {usual:.2f} mm apart."
        )
    if np.abs(gaps - usual).max() > _UNEVEN * usual:
        raise InputError(f"its slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart.")


def _check_straight(positions: np.ndarray, depths: np.ndarray, normal: np.ndarray, voxel_mm: float) -> None:
    """Refuse slices that are shifted by more than a voxel over the whole stack."""
    aside = positions - depths[:, None] * normal
    aside -= aside[0]
    drift = aside[-1]
    tilt = math.degrees(math.atan2(float(np.linalg.norm(drift)), float(depths[-1] - depths[0])))
    if np.linalg.norm(drift) > voxel_mm:
        raise InputError(
            f"was taken with a gantry tilt of {tilt:.1f} degrees: its slices lie askew behind each other; resample it "
            "first (dcm2niix does)."
        )
    if np.linalg.norm(aside, axis=1).max() > voxel_mm:
        raise InputError("its slices are shifted against each other (the table moved?).")


def _unreadable(syntax: str, number: int, error: RuntimeError) -> str:
    from pydicom.uid import UID

    known = UID(syntax)
    if syntax and not (known.is_transfer_syntax and not known.is_compressed):
        return (
            f"is compressed as {known.name}, which cannot be decoded here, or damaged; decompress it first, for "
            "example with gdcmconv --raw."
        )
    return f"its slice {number + 1} is truncated or damaged ({telling(error)})."


def _smaller(values: np.ndarray) -> np.ndarray:
    """Return the values as int16 where that keeps them."""
    limits = np.iinfo(np.int16)
    if values.min() < limits.min or values.max() > limits.max or not np.array_equal(values, np.rint(values)):
        return values
    return values.astype(np.int16)
