"""Does the truth lie as its image does? Voxels are compared one by one, whatever the headers say."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_alice.anatomy.world import PreparedCases
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.words import telling


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
    prepared = PreparedCases(dataset)
    for case in cases:
        path, properties = folder / f"{case}{ending}", prepared.properties(case)
        image = properties.get("sitk_stuff")
        if image is None or not path.is_file():
            continue  # read by other means; a missing one is told when it is needed
        truth = sitk.ImageFileReader()
        truth.SetFileName(str(path))
        try:
            truth.ReadImageInformation()
        except RuntimeError as error:
            raise InputError(f"The truth of {case} cannot be read ({telling(error)}); mend or replace it.") from None
        if "original_orientation" in image or truth.GetDimension() != 3:
            continue  # nnU-Net's reader turns both alike
        if not np.allclose(truth.GetDirection(), image["direction"], atol=1e-3):
            raise InputError(
                f"{path} lies {_letters(truth.GetDirection())} and its image {_letters(image['direction'])}: voxel by "
                "voxel they are not the same anatomy; write the labels in the image's orientation and preprocess again."
            )
        shape = tuple(int(n) for n in properties.get("shape_before_cropping", truth.GetSize()[::-1]))
        if truth.GetSize()[::-1] != shape:
            raise InputError(
                f"{path} has {'x'.join(map(str, truth.GetSize()[::-1]))} voxels (z, y, x) and its image "
                f"{'x'.join(map(str, shape))}; write the labels on the image's grid and preprocess again."
            )


def _letters(direction: Iterable[float]) -> str:
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(value) for value in direction])
