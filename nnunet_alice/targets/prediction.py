"""Predictions of new raw images by a trained model folder, whatever happens to single cases."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.checkpoints.loading import load_checkpoint, network_weights
from nnunet_alice.checkpoints.networks import network_of_file
from nnunet_alice.errors import CheckpointError, MissingFileError
from nnunet_alice.features.images import RawImages
from nnunet_alice.files import read_json
from nnunet_alice.nnunet_folders import plain_name
from nnunet_alice.parallel import Outcomes, for_each_case
from nnunet_alice.targets.network import pooled_encoder
from nnunet_alice.targets.occlusion import draw_case
from nnunet_alice.targets.tasks import Task, task_of_record
from nnunet_alice.targets.windows import CasePredictor


@dataclass(frozen=True)
class FoldModel:
    """The network of one fold, and what its outputs mean.

    Attributes:
        predictor: of whole cases.
        task: of the fold; the statistics of its training cases belong to it.
    """

    predictor: CasePredictor
    task: Task


@dataclass(frozen=True)
class TargetModel:
    """A model folder: the networks of its folds, and how images have to be prepared for them.

    Attributes:
        folds: at least one, all of the same target.
        run: ``plans``, ``configuration``, ``dataset_json``, ``num_input_channels``, and ``orientation`` of the training
            images, by which ``RawImages`` prepares new ones.
    """

    folds: list[FoldModel]
    run: dict[str, Any]

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        folds: Sequence[str] | None = None,
        checkpoint: str = "checkpoint_final.pth",
        device: torch.device | str = "cpu",
    ) -> "TargetModel":
        """Open what ``ClassificationTrainer`` or ``RegressionTrainer`` left in ``nnUNet_results``.

        Args:
            folder: ``Dataset900_NAME/TRAINER__PLANS__CONFIGURATION``.
            folds: e.g. ``["0", "all"]``; None for all that have the checkpoint.
            checkpoint: name of the file in every fold.
            device: where the networks compute.

        Raises:
            InputError: the folder holds no such fold.
            CheckpointError: a checkpoint is damaged, or of a different trainer or target.
        """
        folder = Path(folder)
        plain_name(checkpoint, "-chk")
        found = [f"fold_{plain_name(fold, '-f')}" for fold in folds or ()]
        found = found or sorted(path.parent.name for path in folder.glob(f"fold_*/{checkpoint}"))
        if not found:
            raise MissingFileError(
                f"{folder} holds no fold_*/{checkpoint}; give the folder of a finished training with -m."
            ).about(path=folder, option="-m")
        plans, dataset_json = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
        models, records = [], []
        for fold in found:
            model, record = _open_fold(folder / fold / checkpoint, plans, device)
            models.append(model)
            records.append(record)
        if len({model.task.definition for model in models}) > 1:
            raise CheckpointError(f"The folds of {folder} were trained for different targets; name one with -f.").about(
                path=folder, option="-f"
            )
        run = {"plans": plans, "dataset_json": dataset_json}
        run |= {key: records[0][key] for key in ("configuration", "num_input_channels", "orientation")}
        return cls(models, run)

    @property
    def task(self) -> Task:
        """Task of the first fold."""
        return self.folds[0].task

    @torch.no_grad()
    def predict(self, image: np.ndarray, geometry: CaseGeometry) -> pd.DataFrame:
        """Return mean over the folds of what they say about a preprocessed case: one row.

        The class or label that is predicted is the one that most folds predict; ties go to the higher probability.
        """
        said = []
        for model in self.folds:
            outputs = model.predictor.outputs(model.predictor.case_features(image, geometry).mean)
            said.append(model.task.predictions(outputs))
        return mean_of_folds(pd.concat(said, ignore_index=True))


def predict_images(model: TargetModel, images: RawImages, pictures: Path | None = None) -> Outcomes[pd.DataFrame]:
    """Predict new images, one after the other: one row a case.

    Args:
        model: that predicts.
        images: to predict.
        pictures: folder for an occlusion picture of each case, by the first fold; None draws none.
    """

    def predict(case: str) -> pd.DataFrame:
        opened = images.open(case)
        if pictures is not None:
            path = pictures / f"{case}.png"
            draw_case(model.folds[0].predictor, model.task, opened.image, opened.geometry, path)
        return model.predict(opened.image, opened.geometry)

    return for_each_case(predict, images.cases, doing="Predicting cases")


def _open_fold(path: Path, plans: dict, device: torch.device | str) -> tuple[FoldModel, Mapping[str, Any]]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    checkpoint = load_checkpoint(path)
    record = checkpoint.get("targets")
    if record is None:
        raise CheckpointError(f"{path} was not written by ClassificationTrainer or RegressionTrainer.").about(path=path)
    task, settings = task_of_record(record["task"]), record["settings"]
    configuration = PlansManager(plans).get_configuration(record["configuration"])
    unet = network_of_file(path, configuration, record["num_input_channels"], 1, deep_supervision=False)
    network = pooled_encoder(unet, task.outputs, settings["stages"], settings["dropout"])
    network.load_state_dict(network_weights(checkpoint, path))
    mirror = checkpoint["inference_allowed_mirroring_axes"] or ()
    predictor = CasePredictor(
        network.to(device).eval(), configuration.patch_size, settings["window_step"], tuple(mirror)
    )
    return FoldModel(predictor, task), record


def mean_of_folds(said: pd.DataFrame) -> pd.DataFrame:
    """Return one row of several folds' predictions: means of numbers, and the class that most say."""
    numbers = said.select_dtypes("number").mean().to_frame().T
    for name in said.columns:
        if name == "predicted":
            votes = said[name].value_counts()
            best = votes.index[votes == votes.max()]
            numbers[name] = max(best, key=lambda label: numbers.at[0, f"probability_{label}"])
        elif name.startswith("predicted_") and f"probability_{name[10:]}" in said:
            numbers[name] = int((numbers.at[0, name], numbers.at[0, f"probability_{name[10:]}"]) > (0.5, 0.5))
    return numbers[list(said.columns)]
