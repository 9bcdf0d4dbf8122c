"""Images that SimpleITK does not read, or that have to be turned: a straight copy in the dataset's own folder.

nnU-Net reads through SimpleITK. It refuses axes that are not quite orthogonal, NIfTI-2, FreeSurfer's formats and some
endings in capital letters. Such a file is read in another way, and nnU-Net gets the copy; all other images stay where
they are.
"""

import math
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_alice.errors import InputError
from nnunet_alice.files import atomic_write
from nnunet_alice.importing.endings import ENDINGS_OF_IMPORT, data_files, volume_ending
from nnunet_alice.words import telling

#: Ending of copies, and their folder in the dataset.
COPY_ENDING, COPY_FOLDER = ".nii.gz", "imagesTr"
#: Axes that deviate by more than this from right angles are a gantry's tilt or worse: straightening them would move
#: anatomy. The rounding in public sets is below a tenth of it.
MAX_SKEW_DEGREES = 1.0
#: Formats that nibabel reads.
_NIBABEL = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh")


def read_another_way(path: Path) -> tuple[sitk.Image, str] | None:
    """Read an image that SimpleITK refused.

    Args:
        path: an image file that is whole.

    Returns:
        the image, with orthogonal axes, and what was done in a few words; None if there is no other way to read it.

    Raises:
        InputError: it cannot be read in any way, or its axes are skewed too much.
    """
    ending = volume_ending(path, ENDINGS_OF_IMPORT) or ""
    if ending.lower() in _NIBABEL and ending != ".HDR":
        return _read_with_nibabel(path)
    if ending == ending.lower():
        return None
    image = _read_by_small_letters(path, ending)
    return None if image is None else (image, f"SimpleITK reads {ending.lower()} in small letters only")


def _read_with_nibabel(path: Path) -> tuple[sitk.Image, str]:
    try:
        found = nibabel.load(path)
        values = np.asanyarray(found.dataobj)
        affine = np.asarray(found.affine, dtype=float)
    except Exception as error:  # nibabel raises whatever its parsers raise
        raise InputError(f"unreadable or truncated ({telling(error)}).") from None
    if values.dtype.kind not in "iuf":
        raise InputError(f"holds no plain numbers but {values.dtype} (colour, vectors or complex).")
    plain = np.ascontiguousarray(values.T.astype(values.dtype.newbyteorder("="), copy=False))
    image = sitk.GetImageFromArray(plain, isVector=False)
    if values.ndim != 3:
        return image, ""  # whoever checks it says so
    spacing, direction, skew_degrees = straightened(affine)
    if skew_degrees > MAX_SKEW_DEGREES:
        raise InputError(
            f"its axes are skewed by {skew_degrees:.1f} degrees (a tilted gantry?); resample it onto orthogonal axes, "
            "for example with nibabel.processing.conform."
        )
    # The middle of the volume stays where it is.
    middle = (np.asarray(values.shape) - 1) / 2
    origin = affine[:3, :3] @ middle + affine[:3, 3] - direction @ (spacing * middle)
    to_lps = np.diag([-1.0, -1.0, 1.0])  # nibabel speaks RAS
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((to_lps @ origin).tolist())
    image.SetDirection((to_lps @ direction).ravel().tolist())
    if skew_degrees > 0.001:
        return image, f"its axes were skewed by {skew_degrees:.2g} degrees and were straightened"
    return image, "SimpleITK does not read this format"


def straightened(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return spacing (3,), the nearest orthogonal directions (3, 3) and the skew in degrees of a 4 x 4 affine.

    Raises:
        InputError: the affine is not finite, or flattens space.
    """
    linear = affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    if not np.isfinite(affine).all() or (spacing == 0).any():
        raise InputError("its header holds no usable affine; mend the header.")
    columns = linear / spacing
    if abs(np.linalg.det(columns)) < 1e-3:
        raise InputError("its direction matrix has no inverse (two axes are nearly the same); mend the header.")
    left, _, right = np.linalg.svd(columns)
    cosines = columns.T @ columns - np.eye(3)
    return spacing, left @ right, math.degrees(math.asin(min(1.0, float(np.abs(cosines).max()))))


def write_image(image: sitk.Image, path: Path) -> None:
    """Write an image, compressed, whole or not at all."""
    with atomic_write(path) as temporary:
        sitk.WriteImage(image, str(temporary), True)


def _read_by_small_letters(path: Path, ending: str) -> sitk.Image | None:
    """Read through links whose names have small endings; None if that does not help."""
    with tempfile.TemporaryDirectory() as folder:
        stem = path.name.removesuffix(ending)
        link = Path(folder, stem + ending.lower())
        link.symlink_to(path.absolute())
        for data in data_files(path):
            name = data.name if ending != ".HDR" else stem + data.name.removeprefix(stem).lower()
            Path(folder, name).symlink_to(data.absolute())
        try:
            return sitk.ReadImage(str(link))
        except RuntimeError:
            return None
