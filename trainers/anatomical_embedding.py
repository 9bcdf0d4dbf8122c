"""The anatomical embedding for ``nnUNetv2_train``: ``AnatomicalEmbeddingTrainer`` and its ``_<N>epochs`` variants."""

import os
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes

from nnunet_alice.matching.interface import GeometryMatcher
from nnunet_alice.methods.embedding.heads import DIMENSION
from nnunet_alice.methods.embedding.losses import ContrastSettings
from nnunet_alice.methods.embedding.model import (
    EmbeddingNetwork,
    EmbeddingStep,
    contrast,
    matching_errors_mm,
    similarity_maps,
)
from nnunet_alice.methods.schedules import warmup_cosine
from nnunet_alice.pictures.similarity import SimilarityExample, draw_similarity
from nnunet_alice.pretraining.cases import cases_with_geometry
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.training.ranks import on_one_rank_first
from nnunet_alice.training.variants import epochs_variant
from nnunet_alice.views.augmentation import mild_intensity_augmentation
from nnunet_alice.views.overlap import OverlapSampler
from nnunet_alice.views.overlap_batches import OverlappingCrops

#: positive and negative cosines closer than this on average: the descriptors say nothing
_MIN_GAP = 0.02


class AnatomicalEmbeddingTrainer(PretrainingTrainer):
    """Coarse and fine descriptors of every voxel, by contrast of two overlapping crops of one volume.

    ``batch_size`` of the plans counts pairs of crops. Needs no atlas: only where the body is. After every epoch
    ``metrics.csv``, ``progress.png`` and, every few epochs, ``similarity.png`` say how it goes. Next:
    ``nnunet_alice anatomy --method embedding``.

    Attributes:
        contrast: numbers of the paper; distances are scaled to the size of the crop in mm.
        dimension: length of one descriptor.
        scale: smallest and largest random scale of a crop.
        sgd_momentum: of SGD.
        warmup_steps: steps over which the learning rate rises, at most a tenth of the run.
        validation_batches: batches of a validation epoch.
        examples: queries drawn in ``similarity.png``.
    """

    method = "AnatomicalEmbedding"
    epochs = 80  # 20,000 steps
    learning_rate = 0.02
    final_learning_rate = 0.0
    weight_decay_range = (1e-4, 1e-4)
    max_gradient_norm = None
    contrast = ContrastSettings()
    dimension = DIMENSION
    scale = (0.8, 1.2)
    sgd_momentum = 0.9
    warmup_steps = 500
    validation_batches = 8
    examples = 3

    # --------------------------------------------------------------------------------------------- building

    def initialize(self) -> None:
        """Build everything; distances of the losses follow from the crop's size in mm."""
        extent_mm = np.multiply(self.configuration_manager.patch_size, self.configuration_manager.spacing)
        self.settings = self.contrast.scaled(extent_mm.tolist())
        super().initialize()
        self.num_val_iterations_per_epoch = min(self.validation_batches, self.num_val_iterations_per_epoch)
        self.print_to_log_file(
            f"Crops of {' x '.join(f'{n:.0f}' for n in extent_mm)} mm: fine negatives lie beyond "
            f"{self.settings.fine_ignore_mm:.1f} mm, coarse ones beyond {self.settings.coarse_ignore_mm:.1f} mm or "
            f"{self.settings.coarse_ignore_z_mm:.1f} mm along the first axis."
        )
        if self.batch_size < 2:
            self.print_to_log_file(
                "WARNING: the plans ask for one pair of crops a step; the coarse descriptors also learn from other "
                "volumes of the batch: plan with a larger -gpu_memory_target."
            )

    def build_model(self, network: torch.nn.Module) -> EmbeddingNetwork:
        """Both heads on the network of the plans."""
        return EmbeddingNetwork(network, self.dimension)

    def trained_module(self) -> EmbeddingNetwork:
        """All of it."""
        return self.model

    def compile_model(self) -> None:
        """Compile the network of the plans."""
        self.model.backbone.compile()

    def configure_optimizers(self):
        """SGD with momentum, as the paper; rates are set before every step."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [{"params": trained, "decays": True}]
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.sgd_momentum), None

    def scheduled_learning_rate(self) -> float:
        """Linear warm-up, then cosine (the reference: two steps down)."""
        warmup = max(1, min(self.warmup_steps, self.total_steps // 10))
        return warmup_cosine(self.step, self.total_steps, warmup, self.learning_rate, end=self.final_learning_rate)

    def prepare_cases(self, train_cases: list[str], validation_cases: list[str]) -> tuple[list[str], list[str]]:
        """Find the body of every case; those without one are left out."""
        both = sorted({*train_cases, *validation_cases})
        usable = set(on_one_rank_first(lambda: cases_with_geometry(self.dataset, both, default_num_processes)))
        if len(usable) < len(both):
            self.print_to_log_file(f"No body was found in {len(both) - len(usable)} of {len(both)} cases: left out.")
        self.geometries = GeometryMatcher(self.dataset, usable)
        train_cases = [case for case in train_cases if case in usable]
        validation_cases = [case for case in validation_cases if case in usable]
        if not validation_cases:
            self.print_to_log_file("No validation case can be used: validating on training cases.")
        return train_cases, validation_cases or train_cases

    def make_batches(self, cases: list[str], training: bool) -> OverlappingCrops:
        """Overlapping crops of these cases; for validation, their intensities are left as they are."""
        return OverlappingCrops(
            cases,
            self.geometries.geometry,
            self.dataset.image,
            self.dataset.spacing,
            OverlapSampler(self.configuration_manager.patch_size, scale=self.scale),
            self.batch_size,
            fine_stride=self.model.heads.fine_stride,
            coarse_stride=self.model.heads.coarse_stride,
            transform=mild_intensity_augmentation() if training else None,
        )

    # --------------------------------------------------------------------------------------------- training

    def compute(self, batch: dict, training: bool) -> EmbeddingStep:
        """Both losses of one batch."""
        model = self.wrapped_student if training else self.model
        generator = torch.Generator(self.device).manual_seed(batch["seed"])
        return contrast(
            model(batch["data"]),
            self.model.heads,
            batch["affine"],
            batch["fine_valid"],
            batch["coarse_valid"],
            self.settings,
            generator,
        )

    def cases_of(self, batch: dict) -> list[str]:
        """Names of the cases that a batch shows."""
        return sorted(set(batch["cases"]))

    def on_validation_epoch_start(self) -> None:
        """Evaluation mode; the first batch will be drawn."""
        super().on_validation_epoch_start()
        self._pictured = None

    def validation_outputs(self, batch: dict, result: EmbeddingStep) -> dict:
        """Errors of matching between the two crops of each pair, whose truth is known."""
        if self._pictured is None:
            self._pictured = {"batch": batch, "step": result}
        with torch.autocast(self.device.type, enabled=False):  # half precision ties neighbours and moves positions
            errors, chance = matching_errors_mm(result.fine, result.coarse, result.queries)
        return {"errors": errors.cpu(), "chance": chance.cpu()}

    def validation_metrics(self, outputs: list[dict]) -> dict[str, float]:
        """Median and 90th percentile of the errors; ``match_error_random_mm`` is what guessing would give."""
        errors, chance = (torch.cat([output[name] for output in outputs]) for name in ("errors", "chance"))
        if not len(errors):  # under the same names all the same: ranks reduce them together
            errors = chance = torch.tensor([float("nan")])
        return {
            "match_error_median_mm": float(errors.quantile(0.5)),
            "match_error_p90_mm": float(errors.quantile(0.9)),
            "match_error_random_mm": float(chance.median()),
        }

    def epoch_warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Collapse of either descriptor, from the second epoch on."""
        if self.current_epoch == 0:
            return []
        gaps = {
            name: metrics[f"cosine_{name}_positive"] - metrics[f"cosine_{name}_negative"] for name in ("fine", "coarse")
        }
        return [
            f"this run may be collapsing: {name} cosines of counterparts and of negatives differ by {gap:.3f} only"
            for name, gap in gaps.items()
            if not gap >= _MIN_GAP
        ]

    def on_epoch_end(self) -> None:
        """As in all pretraining; then the maps of the picture no longer take the GPU's memory."""
        super().on_epoch_end()
        self._pictured = None

    def draw_pictures(self) -> None:
        """``similarity.png``: points of validation crops, and how similar another case's crop is to them."""
        batch, step = self._pictured["batch"], self._pictured["step"]
        pairs = len(batch["cases"])
        examples = []
        for number in range(min(self.examples, 2 * pairs)):
            # Crops of other cases first; with one pair there is only its own other crop.
            query = number % pairs
            target = (query + 1) % pairs + pairs * (number // pairs) if pairs > 1 else 1 - number
            examples.append(self._example(batch, step, query, target))
        examples = [example for example in examples if example is not None]
        if examples:
            draw_similarity(examples, self.dataset.spacing, os.path.join(self.output_folder, "similarity.png"))

    def _example(self, batch: dict, step: EmbeddingStep, query: int, target: int) -> SimilarityExample | None:
        """The first query of a crop, looked for in another crop; None where the crop has no query."""
        if not step.queries.present[query].any():
            return None
        point_mm = step.queries.points_mm[query, step.queries.present[query]][0]
        shape = tuple(batch["data"].shape[2:])
        fine, coarse = similarity_maps(step.fine, step.coarse, query, target, point_mm, shape)
        fine_shape = tuple(step.fine.values.shape[2:])
        allowed = batch["fine_valid"][target].reshape(fine_shape).cpu().numpy()
        for axis, factor in enumerate(n // f for n, f in zip(shape, fine_shape, strict=True)):
            allowed = allowed.repeat(factor, axis)
        affine = batch["affine"][query].double().cpu().numpy()
        point_vox = np.linalg.solve(affine, np.append(point_mm.double().cpu().numpy(), 1.0))[:3]
        names = 2 * list(batch["cases"])
        return SimilarityExample(
            batch["data"][query, 0].float().cpu().numpy(),
            batch["data"][target, 0].float().cpu().numpy(),
            point_vox.tolist(),
            fine.cpu().numpy(),
            coarse.cpu().numpy(),
            allowed if allowed.any() else np.ones(shape, dtype=bool),
            names[query],
            names[target],
        )

    # ------------------------------------------------------------------------------------------- checkpoints

    def checkpoint_extras(self) -> dict:
        """What describing volumes with the checkpoint needs beside the weights."""
        return {"embedding": {"dimension": self.dimension}}

    def hyper_parameters(self) -> dict:
        """Settings of run and method."""
        own = {
            "sgd_momentum": self.sgd_momentum,
            "warmup_steps": self.warmup_steps,
            "dimension": self.dimension,
            "scale": self.scale,
        }
        return super().hyper_parameters() | own | asdict(self.settings)

    def trained_parts(self) -> dict[str, bool]:
        """The decoder is trained but for its last stage."""
        return {"encoder": True, "decoder": True}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Say what to do next."""
        super().perform_actual_validation(save_probabilities)
        dataset = self.dataset
        self.print_to_log_file(
            f"To match with it: nnunet_alice anatomy -d {dataset.number} -p {dataset.plans_name} "
            f"-c {dataset.configuration} --method embedding"
        )


class AnatomicalEmbeddingTrainer_smoke(AnatomicalEmbeddingTrainer):
    """Two epochs of two iterations, to try an installation."""

    epochs = 2
    iterations = 2


def __getattr__(name: str) -> type:
    """``<Trainer>_<N>epochs`` of every trainer above."""
    return epochs_variant(name, globals())
