"""Alice for ``nnUNetv2_train``: ``AliceTrainer``, its ablations, and ``AliceTrainer_<N>epochs`` for any N."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import nn

from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.search import EmbeddingMatcher
from nnunet_alice.methods.alice.model import Alice, AliceStep
from nnunet_alice.methods.alice.settings import AliceSettings
from nnunet_alice.methods.diagnostics import retrieval_accuracy, token_index_information
from nnunet_alice.methods.schedules import cosine, linear
from nnunet_alice.pictures.views import draw_views
from nnunet_alice.planning.plans import view_size
from nnunet_alice.pretraining.collapse import signs_of_collapse
from nnunet_alice.trainers.pretraining import PretrainingTrainer
from nnunet_alice.training.variants import epochs_variant
from nnunet_alice.views.augmentation import mild_intensity_augmentation
from nnunet_alice.views.loader import MatchedViews
from nnunet_alice.views.pairs import MatchedPairs, SameVolumePairs
from nnunet_alice.views.readings import UnreadableCaseError

#: cases whose shapes tell how large volumes are (moved plans hold the target's median shape, not this dataset's)
_CASES_FOR_SHAPE = 50


class AliceTrainer(PretrainingTrainer):
    """Alice: views of the same anatomy in different people, masked reconstruction, self-distillation, CASA.

    ``batch_size`` of the plans counts pairs of views. After every epoch ``metrics.csv``, ``progress.png`` and, every
    few epochs, ``views.png`` say how it goes; retrieval is measured on the fold's validation cases (with fold
    ``all`` these are the training cases).

    Attributes:
        settings: all numbers of the method.
        teacher_momentum: of the teacher at the start; a cosine takes it to 1. In short runs it starts lower, so
            that the teacher's memory is at most a twentieth of the run.
        retrieval_candidates: N, number of anchor views among which a query view looks for its own.
        same_volume: take both views from one volume (ablation).
    """

    method = "Alice"
    settings = AliceSettings()
    teacher_momentum = 0.996
    retrieval_candidates = 32
    same_volume = False

    def initialize(self) -> None:
        """Build everything; as many validation iterations as retrieval needs."""
        super().initialize()
        # Every rank does as many (they meet in collectives), enough for the one with the fewest pairs.
        self.num_val_iterations_per_epoch = -(-self.retrieval_candidates // min(self.rank_batch_sizes))
        if self.settings.distils and self.batch_size < 2 and not self.is_ddp:
            self.print_to_log_file(
                "WARNING: the plans ask for one pair of views a step; Alice compares the views of a batch with each "
                "other and needs at least two pairs: plan with a larger -gpu_memory_target, or on more GPUs."
            )

    def _warn_of_large_views(self, pairs: MatchedPairs | SameVolumePairs) -> None:
        """Views that show nearly the whole volume are all alike, but for their padding."""
        plan = self.configuration_manager
        shapes = []
        for case in pairs.cases[:_CASES_FOR_SHAPE]:
            with suppress(UnreadableCaseError), pairs.readings.of(case):
                shapes.append(self.dataset.shape(case))
        if not shapes:
            return
        patch, volume = (tuple(int(n) for n in size) for size in (plan.patch_size, np.median(shapes, axis=0)))
        smaller = view_size(patch, volume, plan.network_arch_init_kwargs["strides"])
        if smaller != patch:
            patch_text, volume_text, smaller_text = ("x".join(map(str, size)) for size in (patch, volume, smaller))
            self.print_to_log_file(
                f"WARNING: views of {patch_text} voxels show nearly all of a volume of {volume_text}, and all look "
                f"alike: set patch_size to {smaller_text} in the plans, or plan with --target."
            )

    def build_model(self, network: nn.Module) -> nn.Module:
        """Alice around the network of the plans."""
        return Alice(network, self.settings)

    def compile_model(self) -> None:
        """Compile student and teacher networks."""
        super().compile_model()
        if self.model.teacher is not None:
            self.model.teacher.backbone.compile()

    def make_batches(self, cases: list[str], training: bool) -> MatchedViews:
        """Matched views of these cases; validation views are not augmented."""
        patch_size = self.configuration_manager.patch_size
        if self.same_volume and training:
            pairs = SameVolumePairs(self.matcher, cases, patch_size)
        else:
            pairs = MatchedPairs(self.matcher, cases, patch_size, self.dataset.shape)
        if training:
            self._warn_of_large_views(pairs)
        return MatchedViews(
            pairs,
            self.dataset.image,
            patch_size,
            self.batch_size,
            mask_ratio=self.settings.mask_ratio,
            transform=mild_intensity_augmentation() if training else None,
        )

    def before_training(self) -> None:
        """Start the teacher at the student's weights, which ``-pretrained_weights`` may have changed."""
        self.model.restart_teacher()

    def compute(self, batch: dict, training: bool) -> AliceStep:
        """All losses of one batch."""
        temperature = linear(
            self.current_epoch, self.settings.teacher_warmup_epochs, *self.settings.teacher_temperature
        )
        student = self.wrapped_student if training else self.model.student
        return self.model.compute(batch["data"], batch["mask"], temperature, student, update_centres=training)

    def after_backward(self) -> None:
        """Prototypes stand still in the first epoch."""
        if self.current_epoch == 0 and self.model.student.head is not None:
            for parameter in self.model.student.head.mlp.last_layer_parameters():
                parameter.grad = None

    def after_step(self) -> None:
        """Move the teacher."""
        if self.model.teacher is not None:
            start = min(self.teacher_momentum, max(0.0, 1 - 20 / self.total_steps))
            self.model.teacher.follow(self.model.student, cosine(self.step, self.total_steps, start, 1.0))

    def on_validation_epoch_start(self) -> None:
        """Evaluation mode; the first batch will be drawn."""
        super().on_validation_epoch_start()
        self._picture = None

    def validation_outputs(self, batch: dict, result: AliceStep) -> dict:
        """Descriptors and token codes of a batch; the first batch is kept for the picture."""
        descriptors = result.descriptors
        if descriptors is None:
            descriptors = self.model.describe(batch["data"])
        count = len(batch["pairs"])
        outputs = {"query": descriptors[:count].cpu(), "anchor": descriptors[count:].cpu()}
        if result.token_codes is not None:
            outputs["codes"] = result.token_codes.cpu()
        if self._picture is None:
            rebuilt = result.reconstruction
            self._picture = {
                "queries": batch["data"][:count, :1].cpu().numpy(),
                "anchors": batch["data"][count:, :1].cpu().numpy(),
                "masks": batch["mask"][:count].cpu().numpy(),
                "reconstructions": None if rebuilt is None else rebuilt[:count, :1].float().cpu().numpy(),
                "pairs": batch["pairs"],
            }
        return outputs

    def validation_metrics(self, outputs: list[dict]) -> dict[str, float]:
        """Retrieval among the validation pairs, and what token codes tell about the token's index."""
        query, anchor = (torch.cat([output[view] for output in outputs]) for view in ("query", "anchor"))
        candidates = min(self.retrieval_candidates, len(query))
        hits = retrieval_accuracy(query[:candidates], anchor[:candidates], k=(1, min(5, candidates)))
        metrics = {"retrieval_top1": hits[1], "retrieval_top5": hits[min(5, candidates)]}
        metrics["chance_top1"] = 1 / candidates
        if "codes" in outputs[0]:
            codes = torch.cat([output["codes"] for output in outputs])
            self._tokens = codes.shape[1]
            metrics["token_index_information"] = token_index_information(codes)
        return metrics

    def epoch_warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse, from the second epoch on."""
        if self.current_epoch == 0 or not self.settings.distils:
            return []
        return [
            f"this run may be collapsing: {sign}"
            for sign in signs_of_collapse(metrics, self.settings.prototypes, getattr(self, "_tokens", 1))
        ]

    def draw_pictures(self) -> None:
        """``views.png``: matched views of the validation cases, masked input and reconstruction."""
        draw_views(**self._picture, path=os.path.join(self.output_folder, "views.png"))

    def hyper_parameters(self) -> dict:
        """Settings of run and method."""
        own = {"teacher_momentum": self.teacher_momentum, "same_volume": self.same_volume}
        return super().hyper_parameters() | own | asdict(self.settings)

    def trained_parts(self) -> dict[str, bool]:
        """The decoder learns from reconstruction alone (its first stage from alignment, too)."""
        return {"encoder": True, "decoder": self.settings.reconstruction}


class AliceTrainer_noCASA(AliceTrainer):
    """Ablation: tokens are compared as they are, without cross-attention (as in iBOT)."""

    settings = replace(AliceTrainer.settings, casa=False)


class AliceTrainer_noContrast(AliceTrainer):
    """Ablation: reconstruction only, masked image modelling."""

    settings = replace(AliceTrainer.settings, contrast=False, alignment=False)


class AliceTrainer_noReconstruction(AliceTrainer):
    """Ablation: self-distillation only."""

    settings = replace(AliceTrainer.settings, reconstruction=False)


class AliceTrainer_sameVolume(AliceTrainer):
    """Ablation: both views come from one volume."""

    same_volume = True


class AliceTrainer_atlas(AliceTrainer):
    """Views matched by the atlas, though an embedding may be there (``AliceTrainer`` would take that)."""

    def open_prepared_matcher(self) -> AtlasMatcher:
        """The atlas."""
        return AtlasMatcher(self.dataset)


class AliceTrainer_embedding(AliceTrainer):
    """Views matched by the anatomical embedding, which has to be there (``anatomy --method embedding``)."""

    def open_matcher(self) -> EmbeddingMatcher:
        """The embedding; nothing else is prepared in its place."""
        return EmbeddingMatcher(self.dataset)


class AliceTrainer_weakContrast(AliceTrainer):
    """Ablation: ``L_cls`` at 0.3 of its weight, between masked images alone and the whole method (docs/alice.md)."""

    settings = replace(AliceTrainer.settings, cls_weight=0.3)


class AliceTrainer_paper(AliceTrainer):
    """The paper's literal pooling, normalisation and temperatures; collapses on InstanceNorm U-Nets (docs/alice.md)."""

    settings = AliceTrainer.settings.paper()


class AliceTrainer_smoke(AliceTrainer):
    """Two epochs of two iterations, to try an installation."""

    epochs = 2
    iterations = 2


def __getattr__(name: str) -> type:
    """``<Trainer>_<N>epochs`` of every trainer above."""
    return epochs_variant(name, globals())
