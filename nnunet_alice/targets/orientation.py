"""How the images of a training were oriented, so that those to be predicted can be turned alike."""

from collections.abc import Sequence

import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_pickle

from nnunet_alice.dataset import PreprocessedDataset

#: so many cases are looked at
_LOOKED_AT = 50


def common_orientation(dataset: PreprocessedDataset, cases: Sequence[str]) -> str | None:
    """Orientation of the raw images of a dataset.

    Args:
        dataset: the preprocessed dataset, whose properties nnU-Net kept.
        cases: to look at; some of them where there are many.

    Returns:
        three letters for where x, y and z point to, e.g. ``LPS``; None where the reader of the plans turns all images
        itself, where images differ, or where nothing is known.
    """
    if dataset.plans["image_reader_writer"].endswith("WithReorient"):
        return None
    step = max(1, len(cases) // _LOOKED_AT)
    found = {_orientation(dataset, case) for case in cases[::step]}
    return found.pop() if len(found) == 1 else None


def _orientation(dataset: PreprocessedDataset, case: str) -> str | None:
    path = dataset.folder / f"{case}.pkl"
    direction = load_pickle(str(path)).get("sitk_stuff", {}).get("direction") if path.is_file() else None
    if direction is None or len(direction) != 9:
        return None
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction)
