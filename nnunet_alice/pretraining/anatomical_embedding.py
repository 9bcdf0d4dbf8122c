"""The anatomical embedding as a pretraining method: descriptors of voxels, by contrast of overlapping crops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_alice.errors import InputError
from nnunet_alice.methods.embedding.heads import DIMENSION
from nnunet_alice.methods.embedding.losses import ContrastSettings
from nnunet_alice.methods.embedding.model import (
    EmbeddingNetwork,
    EmbeddingStep,
    contrast,
    matching_errors_mm,
    similarity_maps,
)
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.pictures.similarity import SimilarityExample, draw_similarity
from nnunet_alice.planning.plans import total_stride
from nnunet_alice.pretraining.cases import cases_with_bodies
from nnunet_alice.pretraining.method import Method, Progress, RunContext, StepResult
from nnunet_alice.pretraining.usable import REMEDY, check_network
from nnunet_alice.training.settings import unrecorded
from nnunet_alice.views.augmentation import mild_intensity_augmentation
from nnunet_alice.views.overlap import OverlapSampler
from nnunet_alice.views.overlap_batches import OverlapBatch, OverlappingCrops

#: positive and negative cosines closer than this on average: the descriptors say nothing
_MIN_GAP = 0.02


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of the anatomical embedding.

    Attributes:
        contrast: numbers of the paper; distances are scaled to the size of the crop in mm.
        dimension: length of one descriptor.
        scale: smallest and largest random scale of a crop.
        validation_batches: batches of a validation epoch.
        examples: queries drawn in ``similarity.png``.
    """

    contrast: ContrastSettings = field(default_factory=ContrastSettings)
    dimension: int = DIMENSION
    scale: tuple[float, float] = (0.8, 1.2)
    validation_batches: int = unrecorded(8)
    examples: int = unrecorded(3)


class EmbeddingMethod(Method[OverlapBatch, EmbeddingSettings]):
    """Coarse and fine descriptors of every voxel, by contrast of two overlapping crops of one volume (TMI 2022).

    ``batch_size`` of the context counts pairs of crops. Needs no atlas: only where the body is.

    Args:
        settings: for crops of the paper's size; :attr:`settings` are those for the crops of the context.
        context: of the run.
    """

    name = "AnatomicalEmbedding"
    model: EmbeddingNetwork

    def __init__(self, settings: EmbeddingSettings, context: RunContext) -> None:
        extent_mm = np.multiply(context.patch_size, context.spacing)
        scaled = settings.contrast.scaled(extent_mm.tolist())
        super().__init__(replace(settings, contrast=scaled), context)
        context.log(
            f"Crops of {' x '.join(f'{n:.0f}' for n in extent_mm)} mm: fine negatives lie beyond "
            f"{scaled.fine_ignore_mm:.1f} mm, coarse ones beyond {scaled.coarse_ignore_mm:.1f} mm or "
            f"{scaled.coarse_ignore_z_mm:.1f} mm along the first axis."
        )
        if context.batch_size < 2:
            context.log(
                "WARNING: the plans ask for one pair of crops a step; the coarse descriptors also learn from other "
                "volumes of the batch: plan with a larger -gpu_memory_target."
            )

    # ---------------------------------------------------------------------------------------------- the network

    def make_model(self, network: nn.Module) -> EmbeddingNetwork:
        """Return both heads on the network.

        Raises:
            InputError: it cannot be trained so.
        """
        check_network(network, min_stages=3, patch_size=self.context.patch_size)
        if total_stride(encoder_of(network).strides[2:]) == (1, 1, 1):
            raise InputError(
                f"The plans' network does not pool after its second stage, so both descriptors are alike; {REMEDY}."
            )
        return EmbeddingNetwork(network, self.settings.dimension)

    @property
    def modules_to_compile(self) -> list[nn.Module]:
        """The network without the heads."""
        return [self.model.backbone]

    # ------------------------------------------------------------------------------------------------ the views

    def prepare(
        self, training: list[str], validation: list[str], matching: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Find the body of every case; those without one are left out."""
        bodies, training, validation = cases_with_bodies(self.context.dataset, training, validation, self.context.log)
        self.geometries = bodies
        return training, validation

    def batches(self, cases: list[str], training: bool) -> OverlappingCrops:
        """Return overlapping crops of these cases; for validation, their intensities are left as they are."""
        return OverlappingCrops(
            cases,
            self.geometries.geometry,
            self.context.dataset.image,
            self.context.spacing,
            OverlapSampler(self.context.patch_size, scale=self.settings.scale),
            self.batch_size,
            fine_stride=self.model.heads.fine_stride,
            coarse_stride=self.model.heads.coarse_stride,
            transform=mild_intensity_augmentation() if training else None,
        )

    def validation_batches(self, rank_batch_sizes: Sequence[int]) -> int:
        """Return the number in the settings."""
        return self.settings.validation_batches

    # --------------------------------------------------------------------------------------------- the training

    def compute(self, batch: OverlapBatch, progress: Progress, training: bool) -> StepResult:
        """Return both losses of one batch; in validation also errors of matching, whose truth is known."""
        step = contrast(
            self.module_for(training)(batch.views),
            self.model.heads,
            batch.affine,
            batch.fine_valid,
            batch.coarse_valid,
            self.settings.contrast,
            torch.Generator(self.context.device).manual_seed(batch.seed),
        )
        if training:
            return StepResult(step.loss, step.terms)
        with torch.autocast(self.context.device.type, enabled=False):  # half precision ties neighbours
            errors, chance = matching_errors_mm(step.fine, step.coarse, step.queries)
        return StepResult(step.loss, step.terms, {"errors": errors.cpu(), "chance": chance.cpu()}, step)

    # ----------------------------------------------------------------------------------------------- the report

    def validation_metrics(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return median and 90th percentile of the errors, and the median error of guessing."""
        errors, chance = (torch.cat([output[name] for output in outputs]) for name in ("errors", "chance"))
        if not len(errors):  # under the same names all the same: ranks reduce them together
            errors = chance = torch.tensor([float("nan")])
        return {
            "match_error_median_mm": float(errors.quantile(0.5)),
            "match_error_p90_mm": float(errors.quantile(0.9)),
            "match_error_random_mm": float(chance.median()),
        }

    def warnings(self, metrics: Mapping[str, float], epoch: int) -> list[str]:
        """Return which descriptors collapse, from the second epoch on."""
        if epoch == 0:
            return []
        gaps = {
            name: metrics[f"cosine_{name}_positive"] - metrics[f"cosine_{name}_negative"] for name in ("fine", "coarse")
        }
        return [
            f"this run may be collapsing: {name} cosines of counterparts and of negatives differ by {gap:.3f} only"
            for name, gap in gaps.items()
            if not gap >= _MIN_GAP
        ]

    def draw(self, batch: OverlapBatch, result: StepResult, folder: Path) -> None:
        """Draw ``similarity.png``: points of validation crops, and how similar a different case's crop is to them."""
        pairs = len(batch.cases)
        examples = []
        for number in range(min(self.settings.examples, 2 * pairs)):
            # Crops of other cases first; with one pair there is only its own other crop.
            query = number % pairs
            target = (query + 1) % pairs + pairs * (number // pairs) if pairs > 1 else 1 - number
            examples.append(_example(batch, result.details, query, target))
        found = [example for example in examples if example is not None]
        if found:
            draw_similarity(found, self.context.spacing, folder / "similarity.png")

    def next_steps(self) -> list[str]:
        """Return the command that matches with the embedding."""
        return [f"To match with it: {self.context.dataset.anatomy_command} --method embedding"]

    # ------------------------------------------------------------------------------------------ the checkpoints

    def checkpoint_extras(self) -> dict[str, Any]:
        """Return what describing volumes with the checkpoint needs beside the weights."""
        return {"embedding": {"dimension": self.settings.dimension}}


def _example(batch: OverlapBatch, step: EmbeddingStep, query: int, target: int) -> SimilarityExample | None:
    """Return the first query of a crop, looked for in a different crop; None where the crop has no query."""
    if not step.queries.present[query].any():
        return None
    point_mm = step.queries.points_mm[query, step.queries.present[query]][0]
    shape = tuple(batch.views.shape[2:])
    fine, coarse = similarity_maps(step.fine, step.coarse, query, target, point_mm, shape)
    fine_shape = tuple(step.fine.values.shape[2:])
    allowed = batch.fine_valid[target].reshape(fine_shape).cpu().numpy()
    for axis, factor in enumerate(n // f for n, f in zip(shape, fine_shape, strict=True)):
        allowed = allowed.repeat(factor, axis)
    affine = batch.affine[query].double().cpu().numpy()
    point_vox = np.linalg.solve(affine, np.append(point_mm.double().cpu().numpy(), 1.0))[:3]
    names = 2 * list(batch.cases)
    return SimilarityExample(
        batch.views[query, 0].float().cpu().numpy(),
        batch.views[target, 0].float().cpu().numpy(),
        point_vox.tolist(),
        fine.cpu().numpy(),
        coarse.cpu().numpy(),
        allowed if allowed.any() else np.ones(shape, dtype=bool),
        names[query],
        names[target],
    )
