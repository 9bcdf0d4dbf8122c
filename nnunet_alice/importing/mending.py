"""Images that SimpleITK does not read, or that have to be turned: a straight copy in the dataset's own folder.

nnU-Net reads through SimpleITK. It refuses axes that are not quite orthogonal, NIfTI-2, FreeSurfer's formats and some
endings in capital letters. Such a file is read in a different way, and nnU-Net gets the copy. All other images stay
where they are.
"""

import math
import tempfile
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage

from nnunet_alice.errors import InputError
from nnunet_alice.files import atomic_write
from nnunet_alice.importing.endings import ENDINGS_OF_IMPORT, data_files, volume_ending
from nnunet_alice.importing.nifti import keeps_orientation
from nnunet_alice.words import telling

#: Ending of copies, and their folder in the dataset.
COPY_ENDING, COPY_FOLDER = ".nii.gz", "imagesTr"
#: Axes that deviate by no more than this from right angles were rounded when they were written.
ROUNDING_DEGREES = 0.01
#: Axes that deviate by more than this from right angles are a gantry's tilt or worse: straightening them would move
#: anatomy. The rounding in public sets is below a tenth of it.
MAX_SKEW_DEGREES = 1.0
#: Formats that nibabel reads.
_NIBABEL = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh")
#: Millimetres of a unit of NIfTI, which SimpleITK minds and nibabel does not.
_MM = {"meter": 1e3, "micron": 1e-3}


def read_another_way(path: Path) -> tuple[sitk.Image, str] | None:
    """Read an image that SimpleITK refused.

    Args:
        path: an image file that is whole.

    Returns:
        the image, and why it was read in a different way; None if there is no other way.

    Raises:
        InputError: it cannot be read in any way.
    """
    ending = volume_ending(path, ENDINGS_OF_IMPORT) or ""
    read = _read_with_nibabel if ending.lower() in _NIBABEL else None
    if all(name == name.lower() for name in _endings(path, ending)):
        return None if read is None else read(path)
    with tempfile.TemporaryDirectory() as folder:
        link = _in_small_letters(path, ending, Path(folder))
        try:
            return sitk.ReadImage(str(link)), f"SimpleITK reads {ending.lower()} in small letters only"
        except RuntimeError:
            return None if read is None else read(link)


def _endings(path: Path, ending: str) -> list[str]:
    """Return the ending of a file, and of the data file behind a .hdr, which is called alike."""
    stem, alike = path.name.removesuffix(ending), data_files(path) if ending.lower() == ".hdr" else ()
    return [ending, *(data.name.removeprefix(stem) for data in alike)]


def _in_small_letters(path: Path, ending: str, folder: Path) -> Path:
    """Link an image into a folder under a name whose ending is in small letters, its data file too."""
    stem = path.name.removesuffix(ending)
    link = folder / f"{stem}{ending.lower()}"
    link.symlink_to(path.absolute())
    for data in data_files(path):
        name = data.name if ending.lower() != ".hdr" else stem + data.name.removeprefix(stem).lower()
        (folder / name).symlink_to(data.absolute())
    return link


def _read_with_nibabel(path: Path) -> tuple[sitk.Image, str]:
    try:
        found = cast(SpatialImage, nibabel.load(path))
        values = np.asanyarray(found.dataobj)
        affine = np.asarray(found.affine, dtype=np.float64)
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises whatever its parsers raise
        reason = telling(error).replace(f"{path.parent}/", "")  # it may be a link that is gone then
        raise InputError(f"unreadable or truncated ({reason}).") from None
    if values.dtype.kind not in "iuf":
        raise InputError(f"holds no plain numbers but {values.dtype} (colour, vectors or complex).")
    plain = np.ascontiguousarray(values.T.astype(values.dtype.newbyteorder("="), copy=False))
    image = sitk.GetImageFromArray(plain, isVector=False)
    if values.ndim != 3:
        return image, ""  # whoever checks it says so
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise InputError(
            "its direction matrix has no inverse (an axis is missing, or two are the same); mend the header."
        )
    if not keeps_orientation(path):  # as SimpleITK takes it; nibabel would turn x and y
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    if isinstance(found, Nifti1Image):
        affine[:3] *= _MM.get(found.header.get_xyzt_units()[0], 1.0)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    to_lps = np.diag([-1.0, -1.0, 1.0])  # nibabel speaks RAS
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
    image.SetDirection((to_lps @ affine[:3, :3] / spacing).ravel().tolist())
    return image, "SimpleITK does not read it as it is"


def straighten(image: sitk.Image) -> float:
    """Give an image the nearest axes at right angles, in place; the middle of the volume stays where it is.

    Returns:
        the largest deviation from a right angle that its axes had, in degrees; 0 if it was left as it was.

    Raises:
        InputError: its axes are skewed too much.
    """
    columns = np.asarray(image.GetDirection()).reshape(3, 3)
    cosines = columns.T @ columns - np.eye(3)
    skew_degrees = math.degrees(math.asin(min(1.0, float(np.abs(cosines).max()))))
    if skew_degrees < ROUNDING_DEGREES:
        return 0.0
    if skew_degrees > MAX_SKEW_DEGREES:
        raise InputError(
            f"its axes are skewed by {skew_degrees:.1f} degrees (a tilted gantry?); resample it onto orthogonal axes, "
            "for example with nibabel.processing.conform."
        )
    left, _, right = np.linalg.svd(columns)
    middle = (np.asarray(image.GetSize()) - 1) / 2 * image.GetSpacing()
    image.SetOrigin((np.asarray(image.GetOrigin()) + (columns - left @ right) @ middle).tolist())
    image.SetDirection((left @ right).ravel().tolist())
    return skew_degrees


def write_image(image: sitk.Image, path: Path, inside: Path | None = None) -> None:
    """Write an image, compressed, whole or not at all; ``inside`` as for ``atomic_write``."""
    with atomic_write(path, inside) as temporary:
        sitk.WriteImage(image, str(temporary), True)
