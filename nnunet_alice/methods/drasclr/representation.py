"""What a patch is to DrasCLR: the encoder's bottleneck in cells, and what instance norms take out of the patch.

The reference's batch normalisation shifts and scales all patches alike, so that their intensities reach the
representation. nnU-Net's instance normalisation takes mean and deviation of every channel out of every patch: how dark
a lung is, is gone after the first layer. The average of a bottleneck map is close to the same number for every
patch. What is taken out is read off here, before it is taken; the encoder and its weights stay as they are.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_alice.methods.distributed import gather_rows
from nnunet_alice.methods.drasclr.conditional import LocatedEncoder, LocationGroups
from nnunet_alice.methods.precision import at_least_float32

_EPS = 1e-5


class PatchRepresentation:
    """Patches and their locations -> vectors: cells of the bottleneck, then the statistics that norms take out.

    Statistics are mean, deviation and mean positive part of the input of the first instance norm of the stem (if there
    is one) and of every stage: what enters the norms behind it was normalised just before. The positive part is that
    above a threshold which the convolution's bias can move: how much of the patch is brighter than that. No parameters,
    no state: an object beside the encoder, which copies along with it.

    Args:
        encoder: `ConditionalEncoder` or `UnconditionedEncoder`; it gives a tensor (B, C, z, y, x), or a list whose last
            one is the bottleneck.
        num_channels: C of the bottleneck.
        cells: for the contrast the bottleneck is averaged to ``cells`` ** 3 cells, which are flattened; features need
            no more than 1.

    Attributes:
        width: numbers a patch: ``C * cells ** 3``, and 3 for every channel of the watched norms.
    """

    def __init__(self, encoder: LocatedEncoder, num_channels: int, cells: int = 1) -> None:
        self.encoder = encoder
        self.cells = cells
        self._taken = _Taken()
        norms = list(_first_norms(encoder.encoder))
        for norm in norms:
            norm.register_forward_pre_hook(self._taken.see)
        self.width = num_channels * cells**3 + 3 * sum(norm.num_features for norm in norms)

    def __call__(self, x: Tensor, locations: LocationGroups) -> Tensor:
        """Return patches (B, C_in, z, y, x) as vectors for the contrast (B, width), float32 at least."""
        return self._pooled(x, locations, self.cells)

    def features(self, x: Tensor, locations: LocationGroups) -> Tensor:
        """Return what probes read: as above, the bottleneck averaged over the whole patch; (B, C + 3 ...).

        Where in a patch something is, is gone from averages over landmarks in any case, and few cases make a probe
        pay for every number.
        """
        return self._pooled(x, locations, 1)

    def _pooled(self, x: Tensor, locations: LocationGroups, cells: int) -> Tensor:
        self._taken.moments = []
        try:
            maps = self.encoder(x, locations)
            statistics = self._taken.moments
        finally:
            self._taken.moments = None
        bottleneck = maps if isinstance(maps, Tensor) else maps[-1]
        return torch.cat(
            [functional.adaptive_avg_pool3d(at_least_float32(bottleneck), cells).flatten(1), *statistics], dim=1
        )


class _Taken:
    """What the watched norms of one encoder take out of a batch; None while nobody asks."""

    def __init__(self) -> None:
        self.moments: list[Tensor] | None = None

    def see(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Note what enters a norm."""
        if self.moments is not None:
            x = at_least_float32(inputs[0])
            variance, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0)
            self.moments += [mean, (variance + _EPS).sqrt(), x.relu().mean(dim=(2, 3, 4))]


class LandmarkStandardisation(nn.Module):
    """Rows minus their mean over the subjects at the same landmark, over the running deviation of what is left.

    What all subjects share at a landmark would take nearly all of a unit vector. The reference's batch normalisation
    takes it away in the same manner, as its batches show one landmark. The deviation is a running one, since few
    subjects may fit a batch: of all ranks' rows, without gradient, and moved only in training mode with gradient, not
    by the key encoder's passes. A landmark's only row is not centred.

    Args:
        width: numbers a row.
        momentum: share of the old variance that stays; the first batches are averaged evenly.
    """

    variance: Tensor
    batches: Tensor

    def __init__(self, width: int, momentum: float = 0.95) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, locations: LocationGroups) -> Tensor:
        """Standardise rows (B, width) of the locations' samples."""
        parts = x.split(locations.counts)
        x = torch.cat([part - part.mean(dim=0) if len(part) > 1 else part for part in parts])
        if self.training and torch.is_grad_enabled():
            self._update(gather_rows(x))
        return x / (self.variance + _EPS).sqrt()

    @torch.no_grad()
    def _update(self, rows: Tensor) -> None:
        new = 1 - (self.batches / (self.batches + 1)).clamp(max=self.momentum).to(rows.dtype)
        self.variance.lerp_(rows.square().mean(dim=0), new)
        self.batches += 1


def _first_norms(encoder: nn.Module) -> Iterator[_InstanceNorm]:
    """Yield the first instance norm of stem and stages; of an encoder without stages, its first."""
    stages = getattr(encoder, "stages", None)
    parts = [encoder] if stages is None else [getattr(encoder, "stem", None), *stages]
    for part in parts:
        norms = [module for module in part.modules() if isinstance(module, _InstanceNorm)] if part is not None else []
        yield from norms[:1]


def feature_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Compare features of the same patches.

    Args:
        pairs: batches of (conditional features, plain features), (B, C) each, at least two patches in all.

    Returns:
        ``relative``: root mean square of the difference over that of the conditional features;
        ``relative_to_spread``: the same over the conditional features' spread about their mean, which is what tells
        patches apart: at 1 the plain encoder is as far off as the mean of all patches would be;
        ``cosine``: mean cosine of the two.

    Raises:
        ValueError: fewer than two patches.
    """
    conditional, plain = (
        torch.cat([batch.detach().double().cpu() for batch in side]) for side in zip(*pairs, strict=True)
    )
    if len(conditional) < 2:
        raise ValueError("A difference of features needs at least two patches.")
    off = (conditional - plain).square().mean()
    spread = (conditional - conditional.mean(dim=0)).square().mean()
    return {
        "relative": float((off / conditional.square().mean().clamp_min(1e-30)).sqrt()),
        "relative_to_spread": float((off / spread.clamp_min(1e-30)).sqrt()),
        "cosine": float(functional.cosine_similarity(conditional, plain, dim=1).mean()),
    }
