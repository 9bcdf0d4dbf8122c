"""Images to take features of: preprocessed cases of a dataset, or raw files that are preprocessed on the fly."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.anatomy.geometry import CaseGeometry, compute_geometry, load_geometry
from nnunet_alice.anatomy.orientation import axial_axis_of_plans
from nnunet_alice.anatomy.world import PreparedCases, file_grid, world_affine
from nnunet_alice.checkpoints.pretraining import pretrained_configuration
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError


class OpenedImage(Protocol):
    """One preprocessed image."""

    image: Any
    geometry: CaseGeometry

    def world_affine(self) -> np.ndarray: ...

    def file_grid(self) -> tuple[np.ndarray, tuple[int, ...]]: ...

    def known_affine(self, atlas_case: str) -> np.ndarray | None: ...


class _Opened:
    """An image with its geometry; the rest is asked for when needed."""

    def __init__(self, image, geometry: CaseGeometry, world, grid, known) -> None:
        self.image, self.geometry = image, geometry
        self.world_affine, self.file_grid, self.known_affine = world, grid, known


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
            )
        self.dataset = dataset
        self.cases = dataset.cases()
        self._same = (dataset.name, dataset.plans_name) == (run["dataset_name"], run["plans_name"])

    def open(self, case: str) -> OpenedImage:
        """Open one case."""

        def known(atlas_case: str) -> np.ndarray | None:
            if not self._same:
                return None
            files = AtlasFiles(self.dataset)
            record = files.read_record(case, files.fingerprint(atlas_case))
            return None if record is None or record.affine is None else record.matrix

        prepared = PreparedCases(self.dataset)
        world, grid = partial(prepared.world_affine, case), partial(prepared.file_grid, case)
        return _Opened(self.dataset.image(case), load_geometry(self.dataset, case), world, grid, known)


class RawImages:
    """Raw files named as nnU-Net wants its inputs (``CASE_0000.nii.gz``), preprocessed as the checkpoint's plans say.

    Args:
        folder: where the files lie.
        run: ``pretraining`` of the checkpoint.

    Raises:
        InputError: the folder holds no such file.
    """

    def __init__(self, folder: str | Path, run: Mapping) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.run = run
        ending = run["dataset_json"]["file_ending"]
        self._files: dict[str, list[str]] = {}
        for path in sorted(Path(folder).glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
            self._files.setdefault(path.name[: -len(ending) - 5], []).append(str(path))
        if not self._files:
            raise InputError(f"{folder} holds no file named CASE_0000{ending}.")
        self.cases: Sequence[str] = sorted(self._files)
        self._plans = PlansManager(run["plans"])
        self._configuration = self._plans.get_configuration(run["configuration"])

    def open(self, case: str) -> OpenedImage:
        """Read and preprocess one case.

        Raises:
            InputError: it has another number of channels.
        """
        files = self._files[case]
        if len(files) != self.run["num_input_channels"]:
            raise InputError(f"Case {case} has {len(files)} channels instead of {self.run['num_input_channels']}.")
        preprocessor = self._configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case(
            files, None, self._plans, self._configuration, self.run["dataset_json"]
        )
        forward, axial_axis = list(self._plans.transpose_forward), axial_axis_of_plans(self.run["plans"])
        geometry = compute_geometry(case, data, tuple(self._configuration.spacing), axial_axis)
        world = partial(world_affine, properties, forward, data.shape[1:])
        return _Opened(data, geometry, world, partial(file_grid, properties, forward), lambda _: None)
