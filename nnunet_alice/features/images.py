"""Images to take features of: preprocessed cases of a dataset, or raw files that are preprocessed on the fly."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nnunet_alice.affine import Affine
from nnunet_alice.anatomy.atlas import Atlas, PreparedAtlas
from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry, load_geometry
from nnunet_alice.anatomy.orientation import TURNED, axial_axis_of_plans, differ, is_orientation, reader_that_gives
from nnunet_alice.anatomy.world import (
    NoWorldError,
    PreparedCases,
    array_orientation,
    file_grid,
    turned_grid,
    world_affine,
)
from nnunet_alice.checkpoints.pretraining import pretrained_configuration, pretrained_orientation
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.importing.endings import ENDINGS_OF_IMPORT
from nnunet_alice.importing.scan import passed_over, scan_folder
from nnunet_alice.importing.turning import read_turned

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedImage:
    """One preprocessed image with its geometry; the rest is asked for when needed.

    Attributes:
        image: (C, z, y, x), numpy array or blosc2 array.
        geometry: of the image.
        world_affine: returns the map from (z, y, x) voxels of the array to (x, y, z) world mm.
        file_grid: returns the map from (z, y, x) voxels of the file to (x, y, z) world mm, and their number on each
            axis. Of raw images it is the user's file, before it is turned.
        known_affine: returns the stored (4, 4) map from mm to mm of an atlas; None without one.
    """

    image: Any
    geometry: CaseGeometry
    world_affine: Callable[[], Affine]
    file_grid: Callable[[], tuple[Affine, tuple[int, ...]]]
    known_affine: Callable[[Atlas], np.ndarray | None]


def opened_array(name: str, image: np.ndarray, spacing: Sequence[float], axial_axis: int) -> OpenedImage:
    """Return a preprocessed array as an image that no file knows: where it lay in the world cannot be asked.

    Args:
        name: of the image, for messages.
        image: (C, z, y, x).
        spacing: (3,) voxel size in mm, (z, y, x).
        axial_axis: the axis along the body.

    Raises:
        InputError: the image is not finite, or shows no body.
    """

    def nowhere() -> NoReturn:
        raise NoWorldError(f"{name} is an array without a file, so its place in the world is unknown.")

    geometry = compute_geometry(name, image, spacing, axial_axis)
    return OpenedImage(image, geometry, nowhere, nowhere, lambda _: None)


class DatasetImages:
    """Preprocessed cases of a dataset that fits a checkpoint's plans.

    Args:
        dataset: the preprocessed dataset.
        run: ``pretraining`` of the checkpoint.

    Raises:
        InputError: voxel size, axes or channels are not those that the encoder was trained on.
    """

    def __init__(self, dataset: PreprocessedDataset, run: Mapping) -> None:
        trained = pretrained_configuration(run)
        there = (dataset.spacing, tuple(dataset.plans["transpose_forward"]))
        wanted = (tuple(trained["spacing"]), tuple(run["plans"]["transpose_forward"]))
        if not np.allclose(there[0], wanted[0]) or there[1] != wanted[1]:
            raise InputError(
                f"{dataset.name} was preprocessed to voxels of {there[0]} mm, the checkpoint's to {wanted[0]} mm; "
                "move the checkpoint's plans with nnUNetv2_move_plans_between_datasets and preprocess with them, or "
                "give the raw images with -i."
            ).about(option="-i", value=there[0], command="nnUNetv2_move_plans_between_datasets")
        self.dataset = dataset
        self.cases = dataset.cases()
        self._atlas = PreparedAtlas.find(dataset)
        self._prepared, self._wanted = PreparedCases(dataset), pretrained_orientation({"pretraining": run})

    def open(self, case: str) -> OpenedImage:
        """Open one case.

        Raises:
            InputError: it is damaged, or lies differently from the images that the encoder was trained on.
        """
        lies = array_orientation(self._prepared.properties(case))
        if differ(lies, self._wanted):
            raise InputError(
                f"Case {case} lies {lies} and what the encoder was trained on {self._wanted}: left would be taken for "
                "right, or one axis for another; give the raw images with -i, which are then turned."
            ).about(case=case, option="-i", value=lies)

        def known(atlas: Atlas) -> np.ndarray | None:
            own = self._atlas
            return own.known_affine(case) if own is not None and own.checksum == atlas.checksum else None

        prepared = self._prepared
        world, grid = partial(prepared.world_affine, case), partial(prepared.file_grid, case)
        return OpenedImage(self.dataset.image(case), load_geometry(self.dataset, case), world, grid, known)


class RawImages:
    """Raw images, read in any format, turned as those of the pretraining lay and preprocessed as its plans say.

    Files are grouped into cases as import does it: ``CASE_0000.nii.gz``, or any name where there is one channel.

    Args:
        folder: where the files lie, in sub-folders, too.
        run: ``pretraining`` of the checkpoint.

    Attributes:
        cases: names of the cases.
        passed_over: files and folders that were passed over, and why; empty if none.

    Raises:
        InputError: the folder holds no image.
    """

    def __init__(self, folder: str | Path, run: Mapping) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.run = run
        if not Path(folder).is_dir():
            raise MissingFileError(f"{folder} is not a folder.").about(path=folder)
        found = scan_folder(Path(folder), run["num_input_channels"], ENDINGS_OF_IMPORT)
        self.passed_over = passed_over(found)
        self._cases = {case.name: case for case in found.cases}
        if not self._cases:
            passed = f" ({self.passed_over})" if self.passed_over else ""
            raise InputError(
                f"{folder} holds no image that can be read{passed}: {', '.join(ENDINGS_OF_IMPORT)}."
            ).about(path=folder)
        self.cases: Sequence[str] = sorted(self._cases)
        self._letters = pretrained_orientation({"pretraining": run})
        plans = run["plans"]
        reader = reader_that_gives(self._letters, plans["image_reader_writer"])
        self._plans = PlansManager({**plans, "image_reader_writer": reader})
        self._configuration = self._plans.get_configuration(run["configuration"])

    def open(self, case: str) -> OpenedImage:
        """Read, turn and preprocess one case.

        Raises:
            InputError: it has other channels, or a file cannot be read.
        """
        candidate = self._cases[case]
        if candidate.problem:
            raise InputError(f"Case {case}: {candidate.problem}").about(case=case)
        letters = self._letters if is_orientation(self._letters) and self._letters != TURNED else ""
        turned = read_turned(candidate.files, letters)
        if turned.assumed:
            logger.warning("Case %s: %s.", case, turned.assumed)
        if turned.done:
            logger.info("Case %s: %s.", case, "; ".join(turned.done))
        preprocessor = self._configuration.preprocessor_class(verbose=False)
        with tempfile.TemporaryDirectory() as copies:
            files = turned.files(candidate.files, lambda number: Path(copies, f"{case}_{number:04d}.nii.gz"))
            data, _, properties = preprocessor.run_case(
                [str(path) for path in files], None, self._plans, self._configuration, self.run["dataset_json"]
            )
        forward, axial_axis = list(self._plans.transpose_forward), axial_axis_of_plans(self.run["plans"])
        geometry = compute_geometry(case, data, tuple(self._configuration.spacing), axial_axis)
        world = partial(world_affine, properties, forward, data.shape[1:])
        done, lay = turned.done, turned.lay  # and not the images, which would stay in memory

        def grid() -> tuple[Affine, tuple[int, ...]]:
            read = file_grid(properties, forward)
            return turned_grid(*read, lay) if done else read  # nnU-Net knows the copy alone, not the user's file

        return OpenedImage(data, geometry, world, grid, lambda _: None)
