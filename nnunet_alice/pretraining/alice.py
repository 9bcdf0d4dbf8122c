"""Alice as a pretraining method: matched views, masked reconstruction, self-distillation, CASA."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_alice.cropping import part_inside
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import NotPreparedError, named
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.interface import GeometryMatcher, Matcher
from nnunet_alice.matching.modalities import lay_regions_of
from nnunet_alice.matching.registry import open_matcher
from nnunet_alice.methods.alice.model import Alice, AliceStep, AliceStudent, ViewRegions
from nnunet_alice.methods.alice.settings import AliceSettings
from nnunet_alice.methods.diagnostics import retrieval_accuracy, token_index_information
from nnunet_alice.methods.distributed import world_size
from nnunet_alice.methods.ema import momentum_for
from nnunet_alice.methods.schedules import cosine, linear
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.pictures.views import draw_views
from nnunet_alice.planning.plans import view_size
from nnunet_alice.pretraining.cases import cases_with_bodies
from nnunet_alice.pretraining.collapse import signs_of_collapse
from nnunet_alice.pretraining.matched_cases import cases_to_validate_on, open_or_prepare_matcher
from nnunet_alice.pretraining.method import Method, Progress, RunContext, StepResult
from nnunet_alice.pretraining.usable import check_network
from nnunet_alice.training.ranks import on_one_rank_first
from nnunet_alice.training.settings import unrecorded
from nnunet_alice.views.augmentation import mild_intensity_augmentation
from nnunet_alice.views.matched_views import AliceBatch, CropsBodies, LabelsRegions, MatchedViews
from nnunet_alice.views.pairs import MatchedPairs, RandomPairs, SameVolumePairs, matching_metrics
from nnunet_alice.views.readings import UnreadableCaseError

#: cases whose shapes tell how large volumes are (moved plans hold the target's median shape, not this dataset's)
_CASES_FOR_SHAPE = 50


@dataclass(frozen=True)
class AlicePretrainingSettings(AliceSettings):
    """The numbers of the paper, and those of views, teacher and validation.

    Attributes:
        teacher_momentum: of the teacher at the start; a cosine takes it to 1. In short runs it starts lower, so
            that the teacher's memory is at most a twentieth of the run.
        same_volume: take both views from one volume (ablation).
        paired: the views of a pair show the same anatomy. False takes views from anywhere in the body, which needs no
            anatomy to be prepared and leaves reconstruction to learn from.
        matcher: name of the matcher that pairs views; None takes the best that was prepared.
        across_modalities: pair views of different modalities, too, by one atlas of all cases; without, where the
            dataset holds several, views are of one modality, and each has an atlas and regions of its own.
        retrieval_candidates: N, number of anchor views among which a query view looks for its own.
    """

    teacher_momentum: float = 0.996
    same_volume: bool = False
    paired: bool = unrecorded(True)  # the record of the views holds these two
    matcher: str | None = unrecorded(None)
    across_modalities: bool = unrecorded(False)  # nor is this: the names of trainers tell runs apart
    retrieval_candidates: int = unrecorded(32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.distils or self.regions) and not self.paired:
            raise ValueError("Contrast, alignment and regions need paired views, whose anatomy is known.")


class AliceMethod(Method[AliceBatch, AlicePretrainingSettings]):
    """Learn from views of the same anatomy in different people (Jiang et al., ICCV 2023).

    ``batch_size`` of the context counts pairs of views.

    Args:
        settings: all numbers of the method.
        context: of the run.
        matcher: pairs views; None opens the one that was prepared for the dataset.
    """

    name = "Alice"
    model: Alice

    def __init__(self, settings: AlicePretrainingSettings, context: RunContext, matcher: Matcher | None = None) -> None:
        super().__init__(settings, context)
        self.matcher = matcher
        self.regions: LabelsRegions | None = None
        self._tokens = 1

    # ---------------------------------------------------------------------------------------------- the network

    def make_model(self, network: nn.Module) -> Alice:
        """Return student and teacher around the network.

        Raises:
            InputError: it cannot be trained so.
        """
        check_network(network, patch_size=self.context.patch_size, full_resolution=self.settings.reconstruction)
        if self.settings.distils and self.batch_size < 2 and world_size() == 1:
            self.context.log(
                "WARNING: the plans ask for one pair of views a step; Alice compares the views of a batch with each "
                "other and needs at least two pairs: plan with a larger -gpu_memory_target, or on more GPUs."
            )
        return Alice(network, self.settings)

    @property
    def trained_module(self) -> AliceStudent:
        """The student: network, head and CASA."""
        return self.model.student

    @property
    def modules_to_compile(self) -> list[nn.Module]:
        """The networks of student and teacher."""
        teacher = self.model.teacher
        return [self.model.student.backbone, *([] if teacher is None else [teacher.backbone])]

    # ------------------------------------------------------------------------------------------------ the views

    def prepare(
        self, training: list[str], validation: list[str], matching: str | None = None
    ) -> tuple[list[str], list[str]]:
        """Open the matcher, and prepare the atlas where no anatomy was prepared; without pairs find bodies alone."""
        context, name = self.context, self.settings.matcher or matching
        if not self.settings.paired:
            self._bodies, training, validation = cases_with_bodies(context.dataset, training, validation, context.log)
            return training, validation
        if self.matcher is None:
            self.matcher = on_one_rank_first(lambda: open_or_prepare_matcher(self._dataset, name, context.log))
        if self.settings.regions and self.regions is None:
            self.regions = lay_regions_of(self._open_atlas(self.matcher), self.settings.num_regions)
        unmatched = sorted(set(training) - set(self.matcher.cases))
        if unmatched:
            context.log(
                f"WARNING: {len(unmatched)} of {len(training)} cases ({named(unmatched)}) cannot be matched: both of "
                "their views come from themselves. Look at atlas.png; nnunet_alice anatomy --atlas CASE tries a "
                "different atlas."
            )
        return training, cases_to_validate_on(self.matcher, training, validation, context.log, self._groups)

    def _opened_matcher(self) -> Matcher:
        assert self.matcher is not None, "prepare() opens the matcher"
        return self.matcher

    @property
    def _dataset(self) -> PreprocessedDataset:
        """The dataset with its modalities apart, or taken as one."""
        dataset = self.context.dataset
        return dataset.together() if self.settings.across_modalities else dataset

    @property
    def _groups(self) -> dict[str, str]:
        """Case -> modality within which views are paired; empty for none."""
        known = getattr(self.context.dataset, "modalities", {})  # whoever gives a matcher need not know of any
        return {} if self.settings.across_modalities else known

    def _open_atlas(self, matcher: Matcher) -> Matcher:
        """Return the atlas (or those of the modalities), whose regions are learned whichever matcher pairs the views.

        Raises:
            NotPreparedError: views are matched by an embedding and no atlas was prepared.
        """
        if matcher.name == AtlasMatcher.name:
            return matcher
        try:
            return open_matcher(self._dataset, name=AtlasMatcher.name)
        except NotPreparedError as error:
            raise NotPreparedError(f"{error}; or train AliceTrainer_noRegions, which needs no atlas.").about(
                path=error.path, command=error.command
            ) from error

    def batches(self, cases: list[str], training: bool) -> MatchedViews:
        """Return views of these cases; validation views are not augmented."""
        dataset, patch_size = self.context.dataset, self.context.patch_size
        pairs: MatchedPairs | SameVolumePairs | RandomPairs
        if not self.settings.paired:
            pairs = RandomPairs(self._bodies, cases)
        elif self.settings.same_volume and training:
            pairs = SameVolumePairs(self._opened_matcher(), cases, patch_size)
        else:
            pairs = MatchedPairs(self._opened_matcher(), cases, patch_size, dataset.shape, group_of=self._groups)
        if training:
            self._warn_of_large_views(pairs)
        return MatchedViews(
            pairs,
            dataset.image,
            patch_size,
            self.batch_size,
            mask_ratio=self.settings.mask_ratio,
            anchor_mask_ratio=0.0 if self.settings.unmasked_anchors else self.settings.mask_ratio,
            transform=mild_intensity_augmentation() if training else None,
            regions=self.regions,
            body_crop=self._body_crop(),
        )

    def _body_crop(self) -> CropsBodies | None:
        """Return what tells body from air in crops: the matcher's geometries, or the shape of the volume."""
        if self.settings.reconstruct_air or not self.settings.reconstruction:
            return None
        bodies = self.matcher if self.settings.paired else self._bodies
        if isinstance(bodies, GeometryMatcher):
            return bodies.body_crop
        return partial(_crop_of_volume, self.context.dataset)

    def _warn_of_large_views(self, pairs: MatchedPairs | SameVolumePairs | RandomPairs) -> None:
        """Warn of views that show nearly the whole volume: they are all alike, but for their padding."""
        shapes = []
        for case in pairs.cases[:_CASES_FOR_SHAPE]:
            with suppress(UnreadableCaseError), pairs.readings.of(case):
                shapes.append(self.context.dataset.shape(case))
        if not shapes:
            return
        patch, volume = (tuple(int(n) for n in size) for size in (self.context.patch_size, np.median(shapes, axis=0)))
        smaller = view_size(patch, volume, encoder_of(self.network).strides)
        if smaller != patch:
            patch_text, volume_text, smaller_text = ("x".join(map(str, size)) for size in (patch, volume, smaller))
            self.context.log(
                f"WARNING: views of {patch_text} voxels show nearly all of a volume of {volume_text}, and all look "
                f"alike: set patch_size to {smaller_text} in the plans, or plan with --target."
            )

    def validation_batches(self, rank_batch_sizes: Sequence[int]) -> int:
        """Return as many batches as retrieval needs, enough for the rank with the fewest pairs."""
        return -(-self.settings.retrieval_candidates // min(rank_batch_sizes))

    # --------------------------------------------------------------------------------------------- the training

    def before_training(self) -> None:
        """Start the teacher at the student's weights."""
        self.model.restart_teacher()

    def compute(self, batch: AliceBatch, progress: Progress, training: bool) -> StepResult:
        """Return all losses of one batch."""
        settings = self.settings
        temperature = linear(progress.epoch, settings.teacher_warmup_epochs, *settings.teacher_temperature)
        regions = None
        if batch.regions is not None and batch.regions_first is not None:
            regions = ViewRegions(batch.regions, batch.regions_first)
        step = self.model.compute(
            batch.views,
            batch.mask,
            temperature,
            self.module_for(training),
            update_centres=training,
            regions=regions,
            share=progress.step / progress.total_steps,
            body=batch.body,
        )
        if training:
            matching = matching_metrics(batch.pairs) if settings.paired else {}
            return StepResult(step.loss, {**step.terms, **matching})
        return StepResult(step.loss, step.terms, self._outputs(batch, step), step)

    def after_backward(self, progress: Progress) -> None:
        """Keep the prototypes where they are in the first epoch."""
        if progress.epoch == 0 and self.model.student.head is not None:
            for parameter in self.model.student.head.mlp.last_layer_parameters():
                parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        if self.model.teacher is not None:
            start = momentum_for(progress.total_steps, self.settings.teacher_momentum)
            self.model.teacher.follow(self.model.student, cosine(progress.step, progress.total_steps, start, 1.0))

    # ----------------------------------------------------------------------------------------------- the report

    def _outputs(self, batch: AliceBatch, step: AliceStep) -> dict[str, torch.Tensor]:
        """Return descriptors and token codes of a batch, where its views are pairs."""
        if not self.settings.paired:
            return {}
        descriptors = self.model.describe(batch.views) if step.descriptors is None else step.descriptors
        count = len(batch.pairs)
        outputs = {"query": descriptors[:count].cpu(), "anchor": descriptors[count:].cpu()}
        return outputs if step.token_codes is None else outputs | {"codes": step.token_codes.cpu()}

    def validation_metrics(self, outputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return retrieval among the validation pairs, and how much token codes say about the token's index."""
        if not self.settings.paired:
            return {}
        query, anchor = (torch.cat([output[view] for output in outputs]) for view in ("query", "anchor"))
        candidates = min(self.settings.retrieval_candidates, len(query))
        hits = retrieval_accuracy(query[:candidates], anchor[:candidates], k=(1, min(5, candidates)))
        metrics = {"retrieval_top1": hits[1], "retrieval_top5": hits[min(5, candidates)]}
        metrics["chance_top1"] = 1 / candidates
        if "codes" in outputs[0]:
            codes = torch.cat([output["codes"] for output in outputs])
            self._tokens = codes.shape[1]
            metrics["token_index_information"] = token_index_information(codes)
        return metrics

    def warnings(self, metrics: Mapping[str, float], epoch: int) -> list[str]:
        """Return signs of collapse, from the second epoch on."""
        if epoch == 0 or not self.settings.distils:
            return []
        signs = signs_of_collapse(metrics, self.settings.prototypes, self._tokens)
        return [f"this run may be collapsing: {sign}" for sign in signs]

    def draw(self, batch: AliceBatch, result: StepResult, folder: Path) -> None:
        """Draw ``views.png``: matched views of validation cases, masked input and reconstruction."""
        count, rebuilt = len(batch.pairs), result.details.reconstruction
        draw_views(
            queries=batch.views[:count, :1].cpu().numpy(),
            anchors=batch.views[count:, :1].cpu().numpy(),
            masks=batch.mask[:count].cpu().numpy(),
            reconstructions=None if rebuilt is None else rebuilt[:count, :1].float().cpu().numpy(),
            pairs=batch.pairs,
            path=folder / "views.png",
        )

    def trained_parts(self) -> dict[str, bool]:
        """Return that the decoder learns from reconstruction and regions (its first stage from alignment, too)."""
        return {"encoder": True, "decoder": self.settings.reconstruction or self.settings.regions}


def _crop_of_volume(
    dataset: PreprocessedDataset, case: str, first_vox: np.ndarray, patch_size: Sequence[int]
) -> np.ndarray:
    """Return which voxels of a crop lie in its volume: bool ``patch_size``."""
    crop = np.zeros(tuple(patch_size), dtype=bool)
    crop[part_inside(first_vox, patch_size, dataset.shape(case))[1]] = True
    return crop
