"""The worst, the median and the best test case of a run, beside the baseline's, for the report's picture."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_alice.benchmark.plan import Cell
from nnunet_alice.benchmark.results import KEYS, MEAN, keys_of
from nnunet_alice.benchmark.runner import Runner
from nnunet_alice.files import read_json
from nnunet_alice.nnunet_folders import nnunet_folder
from nnunet_alice.pictures.benchmark import Example, axial_example

logger = logging.getLogger(__name__)


def example_cases(runner: Runner, cases: pd.DataFrame) -> list[Example]:
    """Return worst, median and best case by Dice of the first pretrained arm, fewest labels, first draw.

    Args:
        runner: prepared.
        cases: from ``collect``.

    Returns:
        empty if no pair of finished runs can be shown.
    """
    pair = _pair(runner, cases)
    if pair is None:
        return []
    baseline, other = pair
    dice = {}
    for cell in pair:
        keys = keys_of(runner, cell) | {"percent": 100, "class": MEAN}
        rows = cases[np.logical_and.reduce([cases[key] == value for key, value in keys.items()])]
        dice[cell] = rows.set_index("case")["dice"].dropna()
    ordered = dice[other].sort_values().index
    if not len(ordered):
        return []
    chosen = {"worst": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "best": ordered[-1]}
    labels = len(runner.splits[other.split]["train"])
    files = _Files(runner)
    examples = []
    for rank, case in chosen.items():
        truth = files.segmentation(runner.workspace.dataset_folder / "gt_segmentations", case)
        segmentations: dict[str, np.ndarray] = {"truth": truth}
        for cell in (baseline, other):
            folder = runner.summaries(cell)[100].parent
            segmentations[f"{cell.arm} {dice[cell].get(case, np.nan):.3f}"] = files.segmentation(folder, case)
        image = files.image(case)
        title = f"{rank}: {case} ({labels} labels)"
        image = np.zeros(truth.shape) if image is None else image
        ignored = files.dataset["labels"].get("ignore")
        examples.append(axial_example(title, image, segmentations, files.spacing, ignored))
    return examples


def _pair(runner: Runner, cases: pd.DataFrame) -> tuple[Cell, Cell] | None:
    """Return baseline's and a pretrained arm's usable run on one split: the first that are done, with fewest labels."""
    usable = set(cases[list(KEYS)].itertuples(index=False, name=None))
    finished = [cell for cell in runner.test_cells() if tuple(keys_of(runner, cell).values()) in usable]
    name = runner.settings.baseline_arm.name
    base = {(cell.split, cell.seed): cell for cell in reversed(finished) if cell.arm == name}
    pairs = [
        (base[cell.split, cell.seed], cell) for cell in finished if cell.arm != name and (cell.split, cell.seed) in base
    ]
    # a different arm from scratch is shown only if there is no pretrained one
    return min(
        pairs, key=lambda pair: (pair[1].checkpoint is None, len(runner.splits[pair[1].split]["train"])), default=None
    )


class _Files:
    """Reads images and segmentations with the dataset's own reader."""

    def __init__(self, runner: Runner) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        folder = runner.workspace.dataset_folder
        self.dataset = read_json(folder / "dataset.json")
        self.name = runner.workspace.dataset
        self.reader = PlansManager(str(folder / f"{runner.settings.plans}.json")).image_reader_writer_class()
        self.spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    def segmentation(self, folder: Path, case: str) -> np.ndarray:
        """Return (z, y, x) labels."""
        array, properties = self.reader.read_seg(str(folder / f"{case}{self.dataset['file_ending']}"))
        self.spacing = tuple(float(value) for value in properties["spacing"])
        return array[0]

    def image(self, case: str) -> np.ndarray | None:
        """Return (z, y, x) first channel; None if the raw data is not here."""
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        try:
            raw = nnunet_folder("nnUNet_raw") / self.name
            files = get_filenames_of_train_images_and_targets(str(raw), self.dataset)[case]["images"]
            return self.reader.read_images(files)[0][0]
        except Exception as error:  # a picture without the image is better than no report
            logger.warning("The picture shows no image of %s (%s: %s).", case, type(error).__name__, error)
            return None
