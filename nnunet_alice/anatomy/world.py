"""Between the voxels of a preprocessed array and the scanner's millimetres, as a viewer shows them.

World coordinates are (x, y, z) mm in the LPS convention of DICOM and ITK, whatever reader nnU-Net used: x to the
patient's left, y to the back, z to the head. nnU-Net preprocesses by transposing, cropping and resampling, in this
order. It keeps what is needed to undo it in the properties of a case.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.orientation import MIXED, ORIENTATION, UNKNOWN, direction_letters
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.words import telling

#: Cases whose properties are looked at for how a dataset lies.
_LOOKED_AT = 20
#: Voxels (z, y, x) -> (x, y, z).
_TO_XYZ = np.eye(4)[[2, 1, 0, 3]]


class NoWorldError(InputError):
    """A case whose file has no place in the scanner's world, e.g. TIFF."""


class PreparedCases:
    """Properties and segmentations of preprocessed cases, which ``PreprocessedDataset`` itself never reads.

    Args:
        dataset: the preprocessed dataset.
    """

    def __init__(self, dataset: PreprocessedDataset) -> None:
        self.dataset = dataset

    @cached_property
    def _loader(self) -> Any:
        return infer_dataset_class(str(self.dataset.folder))(str(self.dataset.folder))

    def segmentation(self, case: str) -> np.ndarray:
        """Return labels (z, y, x) of a case. For measuring only, never for training.

        Raises:
            InputError: its files are missing or damaged.
        """
        with self._told(case):
            return np.asarray(self._loader.load_case(case)[1][0])

    def properties(self, case: str) -> Mapping:
        """Return what nnU-Net stored beside a case.

        Raises:
            InputError: its files are missing or damaged.
        """
        with self._told(case):
            return self._loader.load_case(case)[3]

    @contextmanager
    def _told(self, case: str) -> Iterator[None]:
        """Say which case cannot be read, whatever the libraries say of it."""
        try:
            yield
        except Exception as error:  # damaged files end in errors of every kind
            raise InputError(
                f"The preprocessed files of case {case} cannot be read ({telling(error)}); delete those in "
                f"{self.dataset.folder} and preprocess again."
            ).about(case=case, path=self.dataset.folder) from error

    def world_affine(self, case: str) -> Affine:
        """Return the map from (z, y, x) voxels of the preprocessed array to (x, y, z) world mm of a case.

        Raises:
            InputError: its files are damaged.
            NoWorldError: nnU-Net's reader kept no geometry of the image.
        """
        properties = self.properties(case)
        try:
            return world_affine(properties, self.dataset.plans["transpose_forward"], self.dataset.shape(case))
        except KeyError as error:
            raise NoWorldError(
                f"Case {case}: its properties hold no {error}, so voxels cannot be told in world mm."
            ).about(case=case, value=str(error)) from None

    def file_grid(self, case: str) -> tuple[Affine, tuple[int, ...]]:
        """Return `file_grid` of a case.

        Raises:
            InputError: its files are damaged, or nnU-Net's reader kept no geometry of the file.
        """
        try:
            return file_grid(self.properties(case), self.dataset.plans["transpose_forward"])
        except KeyError as error:
            raise InputError(f"Case {case}: its properties hold no {error}, so its file's voxels are not known.").about(
                case=case, value=str(error)
            ) from None


def array_orientation(properties: Mapping) -> str:
    """Return how the array lay that nnU-Net's reader gave, before it was transposed: letters of x, y and z.

    Args:
        properties: what nnU-Net stored beside the case.

    Returns:
        e.g. ``LPS``; empty where the reader kept no geometry.
    """
    try:
        _, direction, _ = sitk_place(_array_affine(properties))
    except KeyError:
        return ""
    return direction_letters(direction)


def dataset_orientation(dataset: PreprocessedDataset) -> str:
    """Return how the images of a preprocessed dataset lay when nnU-Net read them.

    Args:
        dataset: the preprocessed dataset. Some cases are looked at: plans that nnU-Net moved between datasets say how
            the images of the other one lie.

    Returns:
        letters, ``mixed`` where cases differ, or empty where nothing says it.
    """
    cases, prepared = dataset.cases(), PreparedCases(dataset)
    found = set()
    for case in cases[:: max(1, len(cases) // _LOOKED_AT)]:
        with suppress(InputError):  # whoever reads the case will complain
            found.add(array_orientation(prepared.properties(case)))
    found.discard("")
    return MIXED if len(found) > 1 else next(iter(found), dataset.plans.get(ORIENTATION, UNKNOWN))


def world_affine(properties: Mapping, transpose_forward: Sequence[int], shape: Sequence[int]) -> Affine:
    """Return the affine from voxels of a preprocessed array to world mm: the map (z, y, x) -> (x, y, z), LPS.

    Args:
        properties: what nnU-Net stored beside the case.
        transpose_forward: of the plans; axis i of the preprocessed array is axis ``transpose_forward[i]`` of the array
            that nnU-Net's reader gave.
        shape: (3,) of the preprocessed array.

    Raises:
        KeyError: the properties lack what is needed.
    """
    cropped = np.asarray(properties["shape_after_cropping_and_before_resampling"], dtype=float)
    lower = np.asarray(properties["bbox_used_for_cropping"], dtype=float)[:, 0]
    # Resampling keeps the outer faces of the first and last voxel in place: (i + 0.5) * ratio - 0.5.
    ratio = cropped / np.asarray(shape, dtype=float)
    to_transposed = Affine.scaling(ratio, 0.5 * ratio - 0.5 + lower)
    to_read = np.zeros((4, 4))
    to_read[3, 3] = 1
    for axis, source in enumerate(transpose_forward):
        to_read[source, axis] = 1
    return _array_affine(properties) @ to_read @ to_transposed


def file_grid(properties: Mapping, transpose_forward: Sequence[int]) -> tuple[Affine, tuple[int, ...]]:
    """Return where the voxels of the file lie that nnU-Net read, whether its reader turned them or not.

    Args:
        properties: what nnU-Net stored beside the case.
        transpose_forward: of the plans.

    Returns:
        the map from (z, y, x) voxels of the file to (x, y, z) world mm, LPS; shape (z, y, x) of the file's array.

    Raises:
        KeyError: the properties lack what is needed.
    """
    shape = [0, 0, 0]
    for axis, source in enumerate(transpose_forward):
        shape[source] = int(properties["shape_before_cropping"][axis])
    affine = _array_affine(properties)
    if letters := properties.get("sitk_stuff", {}).get("original_orientation"):
        return turned_grid(affine, shape, letters)
    if "reoriented_affine" in (stuff := properties.get("nibabel_stuff", {})):
        original = _nibabel_affine(stuff["original_affine"])
        axes = np.rint(np.abs((affine.inverse() @ original).linear)).astype(int)
        return original, tuple((shape @ axes).tolist())
    return affine, tuple(shape)


def turned_grid(affine: Affine, shape: Sequence[int], letters: str) -> tuple[Affine, tuple[int, ...]]:
    """Return the grid, as `file_grid` does, of an array with shape (z, y, x) when it is turned to an orientation."""
    return image_grid(sitk.DICOMOrient(image_in_world(np.zeros(shape, np.uint8), affine), letters))


def image_grid(image: sitk.Image | sitk.ImageFileReader) -> tuple[Affine, tuple[int, ...]]:
    """Return where the voxels of an image, or of a header that was read, lie; as `file_grid` returns it."""
    return _sitk_affine(image.GetSpacing(), image.GetDirection(), image.GetOrigin()), image.GetSize()[::-1]


def _array_affine(properties: Mapping) -> Affine:
    """Return the map from (z, y, x) voxels of the array that the reader gave to LPS (x, y, z)."""
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        if len(stuff["direction"]) != 9:
            raise KeyError("a direction of three axes")  # a 2D image
        return _sitk_affine(stuff["spacing"], stuff["direction"], stuff["origin"])
    stuff = properties["nibabel_stuff"]
    return _nibabel_affine(stuff["reoriented_affine"] if "reoriented_affine" in stuff else stuff["original_affine"])


def _nibabel_affine(ras: np.ndarray) -> Affine:
    """Return (z, y, x) voxels -> LPS (x, y, z), of nibabel's (x, y, z) voxels -> RAS."""
    return Affine.scaling((-1, -1, 1)) @ np.asarray(ras) @ _TO_XYZ


def _sitk_affine(spacing: Sequence[float], direction: Sequence[float], origin: Sequence[float]) -> Affine:
    """Return (z, y, x) voxels -> LPS (x, y, z), of what SimpleITK says of an image; `sitk_place` is the way back."""
    return Affine.of_parts(np.reshape(direction, (3, 3)) * np.asarray(spacing), origin) @ _TO_XYZ


def sitk_place(affine: Affine) -> tuple[list[float], list[float], list[float]]:
    """Return spacing, direction and origin, as SimpleITK takes them, of an array that lies in the world.

    Args:
        affine: (z, y, x) voxels of the array -> (x, y, z) world mm, LPS.
    """
    columns = affine.linear[:, ::-1]  # SimpleITK counts x first
    spacing = np.linalg.norm(columns, axis=0)
    return spacing.tolist(), (columns / spacing).ravel().tolist(), affine.shift.tolist()


def image_in_world(array: np.ndarray, affine: Affine) -> sitk.Image:
    """Return array as an image that lies where it belongs.

    Args:
        array: (z, y, x), or (z, y, x, C) for an image of vectors.
        affine: (z, y, x) voxels of the array -> (x, y, z) world mm, LPS.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=array.ndim == 4)
    spacing, direction, origin = sitk_place(affine)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin(origin)
    return image
