"""Does the truth lie as its image does? Voxels are compared one by one, whatever the headers say."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_alice.anatomy.orientation import direction_letters, orientation
from nnunet_alice.anatomy.world import PreparedCases, file_grid
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, named
from nnunet_alice.words import counted, telling


def check_truth(dataset: PreprocessedDataset, folder: Path, ending: str, cases: Iterable[str]) -> None:
    """Make sure that true segmentations have the voxels of their images, in the same order.

    Args:
        dataset: the labelled dataset.
        folder: its true segmentations.
        ending: of their files.
        cases: names of the cases.

    Raises:
        InputError: one has other voxels, or its header turns it a different way than the image: mirrored labels would
            count as mistakes of every model.
    """
    cases, prepared = list(cases), PreparedCases(dataset)
    missing = [case for case in cases if not (folder / f"{case}{ending}").is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks the true segmentations of {counted(len(missing), 'case')} ({named(missing)}); preprocess "
            "again, which copies them there."
        ).about(case=missing[0], path=folder)
    for case in cases:
        path, properties = folder / f"{case}{ending}", prepared.properties(case)
        truth = sitk.ImageFileReader()
        truth.SetFileName(str(path))
        try:
            truth.ReadImageInformation()
        except RuntimeError as error:
            raise InputError(f"The truth of {case} cannot be read ({telling(error)}); mend or replace it.").about(
                case=case
            ) from None
        if truth.GetDimension() != 3 or _is_turned(properties):
            continue
        try:
            affine, shape = file_grid(properties, dataset.plans["transpose_forward"])
        except KeyError:  # a reader that keeps no geometry
            continue
        columns = affine.matrix[:3, 2::-1]  # of x, y and z
        directions = columns / np.linalg.norm(columns, axis=0)
        if not np.allclose(truth.GetDirection(), directions.ravel(), atol=1e-3):
            lies = orientation(truth)
            raise InputError(
                f"{path} lies {lies} and its image {direction_letters(directions.ravel())}: voxel by voxel they are "
                "not the same anatomy; write the labels in the image's orientation and preprocess again."
            ).about(path=path, value=lies)
        if truth.GetSize()[::-1] != shape:
            raise InputError(
                f"{path} has {'x'.join(map(str, truth.GetSize()[::-1]))} voxels (z, y, x) and its image "
                f"{'x'.join(map(str, shape))}; write the labels on the image's grid and preprocess again."
            ).about(path=path, value="x".join(map(str, truth.GetSize()[::-1])))


def _is_turned(properties: Mapping) -> bool:
    """Return whether nnU-Net's reader turned the image, and turns its truth alike."""
    return "original_orientation" in properties.get("sitk_stuff", {}) or "reoriented_affine" in properties.get(
        "nibabel_stuff", {}
    )
