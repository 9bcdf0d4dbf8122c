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
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.orientation import MIXED, ORIENTATION, UNKNOWN, direction_letters
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.words import telling

#: Cases whose properties are looked at for how a dataset lies.
_LOOKED_AT = 20


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
            InputError: nnU-Net's reader kept no geometry of the file.
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
        _, direction, _ = sitk_place(_file_affine(properties))
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
        transpose_forward: of the plans; axis i of the preprocessed array is axis ``transpose_forward[i]`` of the file.
        shape: (3,) of the preprocessed array.

    Raises:
        KeyError: the properties lack what is needed.
    """
    cropped = np.asarray(properties["shape_after_cropping_and_before_resampling"], dtype=float)
    lower = np.asarray(properties["bbox_used_for_cropping"], dtype=float)[:, 0]
    # Resampling keeps the outer faces of the first and last voxel in place: (i + 0.5) * ratio - 0.5.
    ratio = cropped / np.asarray(shape, dtype=float)
    to_transposed = Affine.scaling(ratio, 0.5 * ratio - 0.5 + lower)
    to_file = np.zeros((4, 4))
    to_file[3, 3] = 1
    for axis, source in enumerate(transpose_forward):
        to_file[source, axis] = 1
    return _file_affine(properties) @ to_file @ to_transposed


def file_grid(properties: Mapping, transpose_forward: Sequence[int]) -> tuple[Affine, tuple[int, ...]]:
    """Return where the voxels of a case's file lie, as nnU-Net's reader gave them.

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
    return _file_affine(properties), tuple(shape)


def _file_affine(properties: Mapping) -> Affine:
    """Return the map from (z, y, x) voxels of the array that the reader gave to LPS (x, y, z)."""
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        linear = np.asarray(stuff["direction"]).reshape(3, 3) * np.asarray(stuff["spacing"])
        affine = Affine.of_parts(linear, stuff["origin"])
    else:
        stuff = properties["nibabel_stuff"]
        # nibabel speaks RAS.
        ras = np.asarray(stuff["reoriented_affine"] if "reoriented_affine" in stuff else stuff["original_affine"])
        affine = Affine.scaling((-1, -1, 1)) @ ras
    return affine @ np.eye(4)[[2, 1, 0, 3]]


def sitk_place(affine: Affine) -> tuple[list[float], list[float], list[float]]:
    """Return spacing, direction and origin, as SimpleITK takes them, of an array that lies in the world.

    Args:
        affine: (z, y, x) voxels of the array -> (x, y, z) world mm, LPS.
    """
    columns = affine.linear[:, ::-1]  # SimpleITK counts x first
    spacing = np.linalg.norm(columns, axis=0)
    return spacing.tolist(), (columns / spacing).ravel().tolist(), affine.shift.tolist()
