"""Probes on patches: a linear model that learns on the features of labelled patches, cross-validated."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from nnunet_alice.errors import InputError, named
from nnunet_alice.features.case_names import written_otherwise
from nnunet_alice.features.encoders import TrainedEncoder
from nnunet_alice.features.extraction import point_features
from nnunet_alice.features.images import DatasetImages, RawImages
from nnunet_alice.features.patch_labels import PatchLabels
from nnunet_alice.features.probe import ProbeResult, fit_classifier, fit_ridge, probe
from nnunet_alice.features.probe_data import ProbeData, numbers
from nnunet_alice.parallel import for_each_case
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PatchProbe:
    """A probe on patches.

    Attributes:
        result: as of case features; ``predictions`` has a row a patch, with its point in voxels of the preprocessed
            array.
        classes: names of the classes in the order of the models' answers; ``("value",)`` for a regression.
        failed: reason for each case that was left out.
        data: features and labels of the patches.
        seed: of the folds.
    """

    result: ProbeResult
    classes: tuple[str, ...]
    failed: dict[str, str]
    data: ProbeData
    seed: int

    def model_for(self, case: str) -> Any:
        """Return the model that has not seen a case: of its fold, or one of all labels for a case without any."""
        rows = self.result.predictions.loc[self.result.predictions["case"] == case, "fold"]
        return self.result.models[rows.iloc[0]] if len(rows) else self._of_all

    def answers(self, model: Any, features: np.ndarray) -> np.ndarray:
        """Return (M, K) probabilities of the classes, or (M, 1) predicted values, of (M, C) features."""
        if self.classes == ("value",):
            return model.predict(features)[:, None]
        return model.predict_proba(features)

    @cached_property
    def _of_all(self) -> Any:
        data = self.data
        with threadpool_limits(1):
            if self.classes == ("value",):
                return fit_ridge(data.features, data.target, data.groups, self.seed)[0]
            target = np.unique(data.target, return_inverse=True)[1]
            return fit_classifier(data.features, target, data.groups, self.seed)


def probe_patches(
    encoder: TrainedEncoder,
    images: DatasetImages | RawImages,
    labels: PatchLabels,
    task: str,
    folds: int = 5,
    seed: int = 0,
) -> PatchProbe:
    """Cross-validate a linear model on the features of labelled patches.

    Args:
        encoder: gives the features.
        images: images of the labelled cases.
        labels: points and labels.
        task: ``classification`` or ``regression``.
        folds: outer folds; they keep the groups of the labels together.
        seed: of folds and bootstrap.

    Raises:
        InputError: no labelled case gave features, or see `probe`.
    """
    features: dict[int, np.ndarray] = {}
    points: dict[int, np.ndarray] = {}

    def take(case: str) -> bool:
        rows, opened = labels.of_case(case), images.open(case)
        found = labels.points_vox(rows, opened)
        points.update(zip(rows.tolist(), found, strict=True))
        features.update(zip(rows.tolist(), point_features(encoder, opened, found), strict=True))
        return True

    labelled = _with_images(labels, images.cases)
    failed = for_each_case(take, labelled, doing="Features of patches").failed
    if not features:
        reason = next(iter(failed.values()), f"no image of case '{labels.cases[0]}'")
        raise InputError(f"No labelled patch gave features; the first reason: {reason.rstrip('.')}.")
    rows = np.array(sorted(features))
    target = labels.labels[rows]
    if task == "regression":
        target = numbers(pd.Series(target, name="label"), "the table")
    if len(np.unique(target)) < 2:
        alike = "The only patch has the" if len(target) == 1 else f"All {len(target)} patches have the same"
        raise InputError(f"{alike} label ({target[0]}); there is nothing to predict.").about(value=target[0])
    data = ProbeData(
        labels.cases[rows],
        np.stack([features[row] for row in rows]).astype(np.float64),
        target,
        groups=labels.groups[rows],
    )
    result = probe(data, task, folds, seed)
    table = result.predictions
    for axis, name in enumerate(("z_vox", "y_vox", "x_vox")):
        table[name] = [round(float(points[row][axis]), 2) for row in rows]
    classes = tuple(np.unique(target).tolist()) if task == "classification" else ("value",)
    return PatchProbe(result, classes, failed, data, seed)


def _with_images(labels: PatchLabels, images: Sequence[str]) -> list[str]:
    """Return labelled cases of which there is an image; the others, and images without a label, are told."""
    there, labelled = set(images), list(dict.fromkeys(labels.cases.tolist()))
    otherwise = written_otherwise(images, labelled)
    if otherwise:
        case, name = next(iter(otherwise.items()))
        raise InputError(
            f"{len(otherwise)} of {counted(len(images), 'image')} have labels under a different spelling, e.g. "
            f"'{case}' is '{name}' there; write them alike."
        ).about(case=case, value=name)
    strangers, bare = [case for case in labelled if case not in there], sorted(there - set(labelled))
    if strangers:
        logger.warning(
            "%d of %d labelled cases have no image and are left out: %s.",
            len(strangers), len(labelled), named(strangers),
        )  # fmt: skip
    if bare:
        logger.info("%d of %d images have no label: %s.", len(bare), len(there), named(bare))
    return [case for case in labelled if case in there]
