"""All numbers of Alice in one place, with the paper's values and why ours differ."""

from dataclasses import dataclass, replace

import numpy as np

#: how a weight goes over a run: (share of the run, factor), ..., straight lines between them
Course = tuple[tuple[float, float], ...]
CONSTANT: Course = ((0.0, 1.0),)


@dataclass(frozen=True)
class AliceSettings:
    """What Alice learns from and how (notation of the paper, sec. 3).

    The defaults are the form that lives on InstanceNorm U-Nets; :meth:`paper` gives the literal one, which collapses
    there (``docs/results/alice.md`` has both measured).

    Attributes:
        contrast: learn from the two views of a pair (``L_cls``).
        alignment: learn from tokens (``L_align``).
        casa: align tokens by cross-attention before they are compared; without it encoder tokens are compared as
            they are, as in iBOT.
        reconstruction: learn to reconstruct masked voxels (``L_rec``).
        regions: learn which region of the atlas every voxel belongs to (``L_reg``). Ours, not the paper's: the one term
            that teaches the decoder anatomy. Cases without a good registration have no regions and learn the rest.
        reconstruct_air: ask ``L_rec`` for voxels outside of the body and beyond the volume, too, as the paper does.
            They are constant and teach nothing, and their small errors hide how well anatomy is reconstructed.
        reconstruct_visible: ask ``L_rec`` for voxels that the student sees, too, as the paper does; without it for
            masked voxels alone.
        grid_pooling: average the bottleneck in 2 x 2 x 2 parts and concatenate, where the paper takes one global
            average. After InstanceNorm a global average is the channel's bias, the same for every volume.
        batch_norm: normalise the head's inputs over the batch, pooled features per channel, tokens per token index
            and channel. Without it all views drift to one embedding, and tokens are told apart by their index.
        sinkhorn: balance the teacher's targets over the prototypes by Sinkhorn-Knopp within the batch of all ranks
            (SwAV, DINOv2); without it targets are centred and sharpened as in the paper, and drift to uniform ones.
        unmasked_anchors: the student sees the query views masked and the anchor views whole, in one pass. A quarter of
            a view says little about where in the body it is, and fine-tuning shows whole images. ``L_rec`` is then of
            the query views alone. Without it all views are masked, as in the paper.
        hidden_dim: width of the head's hidden layers; None takes 8 times the bottleneck's channels, at most 2048.
        bottleneck_dim: width of the head's output before the prototypes.
        prototypes: K, number of prototypes and width of the tokens that CASA sees.
        attention_heads: heads of CASA.
        shared_query: let the student's encoder tokens ask for the teacher's tokens, too, as the paper does. Behind
            CASA's residual both sides then hold the same query, and ``L_align`` is solved without looking at the image
            (0.03 nats after 50 iterations, dropout off); the teacher's own tokens have to be predicted.
        alignment_gain: initial gain of CASA's last LayerNorm. Its outputs are the logits of ``L_align``; at gain 1
            their standard deviation is 1, where the other logits are cosines of about 0.06, and the temperatures made
            for cosines turn them into one-hot targets (loss 26 against ln K = 6.2, and rising).
        max_tokens: tokens per axis at most, of encoder and of decoder; larger maps are averaged. The paper's crops of
            64 voxels give 2 and 4; nnU-Net's patches and strides would give up to 10 and 20, and the head would then
            cost more than the network.
        student_temperature: tau_s.
        teacher_temperature: tau_t at the start and at the end of its warm-up.
        teacher_warmup_epochs: epochs over which tau_t moves.
        centre_momentum: of the centres' moving average.
        cls_weight: weight of ``L_cls``.
        alignment_weight: weight of ``L_align`` (the paper's 1 costs more reconstruction).
        reconstruction_weight: weight of ``L_rec``.
        region_weight: weight of ``L_reg``.
        num_regions: regions that the atlas is cut into, at most.
        cls_course: factor of ``cls_weight`` over the run.
        alignment_course: factor of ``alignment_weight`` over the run.
        reconstruction_course: factor of ``reconstruction_weight`` over the run.
        region_course: factor of ``region_weight`` over the run.
        mask_ratio: share of blocks hidden in the views that are masked; the paper has 0.75, which taught less here.
    """

    contrast: bool = True
    alignment: bool = True
    casa: bool = True
    reconstruction: bool = True
    regions: bool = True
    reconstruct_air: bool = False
    reconstruct_visible: bool = True
    grid_pooling: bool = True
    batch_norm: bool = True
    sinkhorn: bool = True
    unmasked_anchors: bool = True
    hidden_dim: int | None = None
    bottleneck_dim: int = 256
    prototypes: int = 512
    attention_heads: int = 8
    shared_query: bool = False
    alignment_gain: float = 0.1
    max_tokens: int = 4
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.01, 0.01)
    teacher_warmup_epochs: int = 30
    centre_momentum: float = 0.9
    cls_weight: float = 1.0
    alignment_weight: float = 0.3
    reconstruction_weight: float = 10.0
    region_weight: float = 20.0
    num_regions: int = 100
    cls_course: Course = CONSTANT
    alignment_course: Course = CONSTANT
    reconstruction_course: Course = CONSTANT
    region_course: Course = CONSTANT
    mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not (self.contrast or self.alignment or self.reconstruction or self.regions):
            raise ValueError(
                "Alice needs at least one of contrast, alignment, reconstruction and regions to learn from."
            )
        for course in (self.cls_course, self.alignment_course, self.reconstruction_course, self.region_course):
            shares = [share for share, _ in course]
            if not course or shares != sorted(shares) or min(shares) < 0 or max(shares) > 1:
                raise ValueError(f"A course lists rising shares of the run between 0 and 1, not {course}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, not {self.mask_ratio}.")

    @property
    def distils(self) -> bool:
        """Whether a teacher is needed."""
        return self.contrast or self.alignment

    @property
    def aligns_decoder(self) -> bool:
        """Whether decoder tokens are used: CASA gathers them, nothing else reads them."""
        return self.alignment and self.casa

    def decoder_stages(self, stages: int) -> int | None:
        """Return how many of a network's decoder stages the student runs; None for all and the output."""
        if self.reconstruction:
            return None
        return stages if self.regions else int(self.aligns_decoder)

    def weights(self, share: float) -> tuple[float, float, float, float]:
        """Return the weights of ``L_cls``, ``L_align``, ``L_rec`` and ``L_reg``.

        Args:
            share: of the run that is done, in [0, 1].
        """
        return (
            self.cls_weight * along(self.cls_course, share),
            self.alignment_weight * along(self.alignment_course, share),
            self.reconstruction_weight * along(self.reconstruction_course, share),
            self.region_weight * along(self.region_course, share),
        )

    def paper(self) -> "AliceSettings":
        """These settings with the paper's literal pooling, targets, queries, gain, temperatures and weights."""
        return replace(
            self,
            regions=False,
            reconstruct_air=True,
            grid_pooling=False,
            batch_norm=False,
            sinkhorn=False,
            unmasked_anchors=False,
            shared_query=True,
            alignment_gain=1.0,
            teacher_temperature=(0.008, 0.01),
            cls_weight=1.0,
            mask_ratio=0.75,
            alignment_weight=1.0,
        )


def along(course: Course, share: float) -> float:
    """Return the factor at a share of the run: linear between the points of a course, constant before and after."""
    shares, factors = zip(*course, strict=True)
    return float(np.interp(share, shares, factors))
