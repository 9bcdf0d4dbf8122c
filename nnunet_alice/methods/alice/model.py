"""Alice: student and teacher around one U-Net, and everything they are trained by (paper, sec. 3)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_alice.methods.alice.casa import CASA
from nnunet_alice.methods.alice.head import AliceHead, HeadOutputs, view_descriptors
from nnunet_alice.methods.alice.losses import (
    AliceLosses,
    Centre,
    alignment_loss,
    centred_targets,
    cross_view_loss,
    reconstruction_loss,
    sinkhorn_targets,
)
from nnunet_alice.methods.alice.regions import RegionHead, region_accuracy, region_loss
from nnunet_alice.methods.alice.settings import AliceSettings
from nnunet_alice.methods.diagnostics import conditional_entropy, embedding_spread, marginal_entropy
from nnunet_alice.methods.ema import frozen_copy, update_ema
from nnunet_alice.methods.intermediate_features import IntermediateFeatures, freeze_unused_decoder
from nnunet_alice.methods.unets import decoder_of, encoder_of


class StudentOutputs(NamedTuple):
    """What the student gives for 2B masked views.

    Attributes:
        reconstruction: (2B, C, *patch) or None.
        cls: (2B, K) logits of the views, or None.
        encoder_tokens: (2B, T_E, K) logits or None.
        aligned: (2B, T_E, K) ``S~``, encoder tokens after CASA, or None.
        regions: for each decoder stage that is asked (2B, z, y, x, regions) logits, or None.
    """

    reconstruction: Tensor | None
    cls: Tensor | None
    encoder_tokens: Tensor | None
    aligned: Tensor | None
    regions: list[Tensor] | None


class ViewRegions(NamedTuple):
    """Which regions of the atlas the views show, at every third voxel (:func:`regions.grid_size`).

    Attributes:
        labels: (2B, z, y, x) int64, 1 to the number of regions; 0 where nothing is known.
        first: (3,) int64, the first voxel with a label on every axis.
    """

    labels: Tensor
    first: Tensor


class AliceStep(NamedTuple):
    """Result of one step.

    Attributes:
        loss: scalar to minimise.
        terms: named scalars, detached: each loss and each collapse measure.
        reconstruction: (2B, C, *patch) detached, or None.
        descriptors: (2B, 8 C_E) teacher's descriptors of the views, or None without a teacher.
        token_codes: (2B, T_E) prototype that each aligned target token prefers, or None without alignment.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    reconstruction: Tensor | None
    descriptors: Tensor | None
    token_codes: Tensor | None


class AliceStudent(nn.Module):
    """Network, head and CASA: all that gets gradients, in one forward pass (one module to wrap for DDP).

    Args:
        network: nnU-Net network whose output has as many channels as its input.
        settings: what to learn from.
    """

    def __init__(self, network: nn.Module, settings: AliceSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = IntermediateFeatures(network)
        self.decoder_stages = settings.decoder_stages(len(decoder_of(network).stages))
        freeze_unused_decoder(network, self.decoder_stages)
        self.head = self.casa = self.region_head = None
        channels = encoder_of(network).output_channels
        if settings.regions:
            self.region_head = RegionHead(channels[-2::-1], settings.num_regions)
        if settings.distils:
            self.head = AliceHead(channels[-1], channels[-2], settings)
        if settings.aligns_decoder:
            self.casa = CASA(settings.prototypes, settings.attention_heads)
            nn.init.constant_(self.casa.norm_feedforward.weight, settings.alignment_gain)

    def forward(self, views: Tensor, first: Tensor | None = None) -> StudentOutputs:
        """Run network, head and CASA.

        Args:
            views: (2B, C, *patch) as the student sees them, masked voxels 0.
            first: :attr:`ViewRegions.first`; None does not ask for regions.
        """
        settings = self.settings
        maps = self.backbone(views, self.decoder_stages)
        regions = None
        if self.region_head is not None and first is not None:
            regions = self.region_head(maps.decoder, first)
        if self.head is None:
            return StudentOutputs(maps.output, None, None, None, regions)
        decoder = maps.decoder[0] if settings.aligns_decoder else None
        heads = self.head(maps.bottleneck, decoder, tokens=settings.alignment)
        aligned = heads.encoder_tokens
        if self.casa is not None:
            aligned = self.casa(heads.encoder_tokens, heads.decoder_tokens)
        return StudentOutputs(maps.output, heads.cls, heads.encoder_tokens, aligned, regions)


class AliceTeacher(nn.Module):
    """Moving average of the student's network and head; sees unmasked views, never gets a gradient."""

    def __init__(self, student: AliceStudent) -> None:
        super().__init__()
        if student.head is None:
            raise ValueError("A teacher needs a student that distils: this one has no head.")
        self.backbone = frozen_copy(student.backbone)
        self.head = frozen_copy(student.head)
        self.settings = student.settings

    @torch.no_grad()
    def forward(self, views: Tensor) -> tuple[HeadOutputs, Tensor]:
        """Return head outputs and bottleneck of unmasked views; the decoder runs to its first stage only."""
        maps = self.backbone(views, int(self.settings.aligns_decoder))
        decoder = maps.decoder[0] if self.settings.aligns_decoder else None
        return self.head(maps.bottleneck, decoder, tokens=self.settings.alignment), maps.bottleneck

    @torch.no_grad()
    def follow(self, student: AliceStudent, momentum: float) -> None:
        """Move network and head: theta_t <- m theta_t + (1 - m) theta_s."""
        update_ema(self.backbone, student.backbone, momentum)
        assert student.head is not None
        update_ema(self.head, student.head, momentum)


class Alice(nn.Module):
    """Student, teacher, centres and the loss that joins them.

    Args:
        network: nnU-Net network whose output has as many channels as its input; trained in place.
        settings: what to learn from.
    """

    def __init__(self, network: nn.Module, settings: AliceSettings) -> None:
        super().__init__()
        self.settings = settings
        self.student = AliceStudent(network, settings)
        self.teacher = AliceTeacher(self.student) if settings.distils else None
        self.centre_cls = Centre(settings.prototypes, settings.centre_momentum)
        self.centre_alignment = Centre(settings.prototypes, settings.centre_momentum)

    def restart_teacher(self) -> None:
        """Make the teacher equal to the student (after weights were loaded into the network)."""
        if self.teacher is not None:
            self.teacher.follow(self.student, 0.0)

    def compute(
        self,
        views: Tensor,
        mask: Tensor,
        teacher_temperature: float,
        student: Callable[..., StudentOutputs] | None = None,
        update_centres: bool = True,
        regions: ViewRegions | None = None,
        share: float = 0.0,
        body: Tensor | None = None,
    ) -> AliceStep:
        """Return losses and collapse diagnostics of one batch.

        Args:
            views: (2B, C, *patch), first B query views, then their B anchor views.
            mask: (2B, *patch) bool, True where the student is blind.
            teacher_temperature: tau_t.
            student: the student as wrapped for DDP; None for the plain one.
            update_centres: move the centres by this batch (not in validation).
            regions: which regions of the atlas the views show; needed where the settings ask for ``L_reg``.
            share: of the run that is done, in [0, 1], for the courses of the weights.
            body: (2B, *patch) bool, True in the body; None where it is not known or air counts, too.
        """
        settings = self.settings
        first = None if regions is None else regions.first
        outputs = (student or self.student)(views.masked_fill(mask.unsqueeze(1), 0), first)
        zero = views.new_zeros((), dtype=torch.float32)
        cls = alignment = reconstruction = region = zero
        terms: dict[str, Tensor] = {}
        descriptors = token_codes = None
        if self.teacher is not None:
            target, bottleneck = self.teacher(views)
            descriptors = view_descriptors(bottleneck)
            if settings.contrast:
                assert outputs.cls is not None
                targets = self._targets(target.cls, self.centre_cls, teacher_temperature)
                cls = cross_view_loss(targets, outputs.cls, settings.student_temperature)
                terms |= _collapse_diagnostics("cls", targets)
                terms["spread"] = embedding_spread(target.embedding)
            if settings.alignment:
                assert outputs.encoder_tokens is not None and outputs.aligned is not None
                aligned = self._aligned_target(outputs.encoder_tokens, target)
                targets = self._targets(aligned, self.centre_alignment, teacher_temperature)
                alignment = alignment_loss(targets, outputs.aligned, settings.student_temperature)
                terms |= _collapse_diagnostics("align", targets)
                token_codes = targets.argmax(-1)
            if update_centres:
                if settings.contrast:
                    self.centre_cls.update(target.cls)
                if settings.alignment:
                    self.centre_alignment.update(aligned)
            terms["centre_norm"] = self.centre_cls.value.norm()
        if settings.reconstruction:
            assert outputs.reconstruction is not None
            masked = len(views) // 2 if settings.unmasked_anchors else len(views)
            where = self._reconstructed(mask, body)
            reconstruction = reconstruction_loss(
                outputs.reconstruction[:masked], views[:masked], None if where is None else where[:masked]
            )
        if outputs.regions is not None and regions is not None:
            region = region_loss(outputs.regions, regions.labels)
            terms["region_accuracy"] = region_accuracy(outputs.regions, regions.labels)
        losses = AliceLosses(cls, alignment, reconstruction, region)
        loss = losses.total(settings.weights(share))
        named = {f"loss_{name}": value.detach() for name, value in losses._asdict().items()}
        rebuilt = None if outputs.reconstruction is None else outputs.reconstruction.detach()
        return AliceStep(loss, {"loss": loss.detach(), **named, **terms}, rebuilt, descriptors, token_codes)

    def _reconstructed(self, mask: Tensor, body: Tensor | None) -> Tensor | None:
        """Return the voxels that ``L_rec`` asks for, bool like the mask; None for all."""
        body = None if self.settings.reconstruct_air else body
        if self.settings.reconstruct_visible:
            return body
        return mask if body is None else mask & body

    def _targets(self, logits: Tensor, centre: Centre, temperature: float) -> Tensor:
        """Return the teacher's targets (2B, ..., K) from its logits.

        Tokens are balanced over the views for every token index on its own: a code then cannot tell the index, the
        shortcut that token losses otherwise fall into.
        """
        if not self.settings.sinkhorn:
            return centred_targets(logits, centre.value, temperature)
        return sinkhorn_targets(logits.transpose(0, -2), temperature).transpose(0, -2)

    @torch.no_grad()
    def _aligned_target(self, student_tokens: Tensor, target: HeadOutputs) -> Tensor:
        """Return ``T~``: the teacher's decoder tokens gathered by encoder tokens; no gradient passes."""
        assert target.encoder_tokens is not None
        if self.student.casa is None:
            return target.encoder_tokens
        query = student_tokens if self.settings.shared_query else target.encoder_tokens
        return self.student.casa(query, target.decoder_tokens)

    @torch.no_grad()
    def describe(self, views: Tensor) -> Tensor:
        """Return descriptors (B, 8 C_E) of unmasked views, by the teacher or, without one, by the network."""
        backbone = self.student.backbone if self.teacher is None else self.teacher.backbone
        return view_descriptors(backbone(views, 0).bottleneck)


def _collapse_diagnostics(name: str, targets: Tensor) -> dict[str, Tensor]:
    """Return entropies (nats) of the teacher's targets: low conditional and high marginal entropy is alive."""
    return {
        f"conditional_entropy_{name}": conditional_entropy(targets),
        f"marginal_entropy_{name}": marginal_entropy(targets),
    }
