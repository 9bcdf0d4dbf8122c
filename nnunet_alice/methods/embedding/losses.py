"""Contrastive losses of the anatomical embedding: fine and coarse InfoNCE with hard, ignored and global negatives.

Paper: Yan et al., TMI 2022, sec. III-B (fine: hard negatives ranked by both similarities; coarse: hard negatives of
the pair and global ones of other volumes). V = 2 P crops make P pairs: crop i and crop i + P show the same volume.
Both crops of a pair ask in turn, so every tensor below has one row per asking crop.

Deviations, each on purpose:
- The counterpart of a query is the other crop's descriptor at *exactly* the query's position, by trilinear
  interpolation. The reference takes the nearest voxel if it lies within 2 mm; with plans of 5 mm slices hardly any
  voxel does, and the index (``matching.index``) interpolates descriptors anyway, so they had better be interpolable.
- The coarse loss asks at the positions of the fine one (the reference: at coarse voxels whose nearest voxel of the
  other crop is within 25 mm and 6 mm in z). A coarse map of a small patch has few voxels, too few to learn from. The
  two limits say which voxels *could* be positives, so the voxels within both are no negatives; the reference ignores
  within 5 mm only, and counts some positives as negatives.
- Voxels that are ignored or in padding are left out of the selection; the reference sets their similarity to 0,
  which makes them negatives again as soon as there are too few others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_alice.methods.embedding.positions import apply_affine, inverse_affine, map_positions_mm, sample_map

#: Crop of the reference in mm, (z, y, x): 32 x 96 x 96 voxels at 2 mm.
REFERENCE_EXTENT_MM = (64.0, 192.0, 192.0)


@dataclass(frozen=True)
class ContrastSettings:
    """Numbers of the paper.

    Attributes:
        temperature: of both InfoNCE losses.
        positives: queries a crop, drawn among the fine voxels that the other crop shows too.
        fine_ignore_mm: fine negatives lie farther from the query than this.
        fine_hardest: so many most similar voxels (mean of fine and coarse) are candidates ...
        fine_negatives: ... of which so many are drawn at random.
        coarse_ignore_mm: coarse voxels within this distance of the query *and* within
        coarse_ignore_z_mm: this distance along the first axis are no negatives.
        coarse_hardest: candidates of the pair, by coarse similarity ...
        coarse_negatives: ... of which so many are drawn at random.
        global_negatives: coarse voxels drawn from other volumes of the batch; all of them if there are fewer.
    """

    temperature: float = 0.5
    positives: int = 100
    fine_ignore_mm: float = 20.0
    fine_hardest: int = 2000
    fine_negatives: int = 500
    coarse_ignore_mm: float = 25.0
    coarse_ignore_z_mm: float = 6.0
    coarse_hardest: int = 250
    coarse_negatives: int = 200
    global_negatives: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name != "global_negatives"):
                raise ValueError(f"{name} must be positive, got {value}.")
        if self.fine_negatives > self.fine_hardest or self.coarse_negatives > self.coarse_hardest:
            raise ValueError("More negatives than candidates: fine_hardest and coarse_hardest must not be smaller.")

    def scaled(self, crop_extent_mm: Sequence[float]) -> "ContrastSettings":
        """Return settings for crops of a different size in mm.

        Distances shrink with the crop: by the ratio of its mean extent (geometric) to that of the reference, along
        the first axis by the ratio of the first extents. They never grow, for larger crops do not make larger
        organs. A crop of 35 x 50 x 35 mm (hippocampus) ignores 5.9 mm (fine), 7.4 mm and 3.3 mm (coarse). Counts stay.

        Args:
            crop_extent_mm: (3,) patch size times spacing, (z, y, x).

        Raises:
            ValueError: not three positive lengths.
        """
        if len(crop_extent_mm) != 3 or min(crop_extent_mm) <= 0:
            raise ValueError(f"crop_extent_mm must be three positive lengths, got {crop_extent_mm}.")
        ratios = [own / reference for own, reference in zip(crop_extent_mm, REFERENCE_EXTENT_MM, strict=True)]
        overall = min(1.0, (ratios[0] * ratios[1] * ratios[2]) ** (1 / 3))
        return replace(
            self,
            fine_ignore_mm=self.fine_ignore_mm * overall,
            coarse_ignore_mm=self.coarse_ignore_mm * overall,
            coarse_ignore_z_mm=self.coarse_ignore_z_mm * min(1.0, ratios[0]),
        )


class DescriptorMap(NamedTuple):
    """One descriptor map of all crops and where it lies.

    Attributes:
        values: (V, D, z, y, x), unit length along axis 1.
        affine: (V, 4, 4) float, index of the map -> mm in the crop's volume (``positions.feature_affine``).
        valid: bool (V, z * y * x), voxels that may be queries and negatives: inside the volume (and the body).
    """

    values: Tensor
    affine: Tensor
    valid: Tensor


class Queries(NamedTuple):
    """Points that both crops of a pair show.

    Attributes:
        points_mm: (V, Q, 3), drawn in crop v; their positives lie in the other crop.
        present: bool (V, Q); False fills rows of crops with fewer than Q shared voxels.
    """

    points_mm: Tensor
    present: Tensor


class ContrastTerms(NamedTuple):
    """One contrastive loss and what tells whether it lives.

    Attributes:
        loss: scalar, mean InfoNCE of all queries; 0 (with gradient 0) where no query has a negative.
        positive: mean cosine of queries and counterparts, detached.
        negative: mean cosine of queries and drawn negatives, detached; near ``positive`` means collapse.
        accuracy: share of queries whose counterpart is more similar than all drawn negatives, detached.
        queries: number of queries that took part, detached.
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor
    accuracy: Tensor
    queries: Tensor


def other_crop(x: Tensor) -> Tensor:
    """Return the same tensor with the two crops of each pair exchanged: row i <-> row i + P."""
    return x.roll(len(x) // 2, dims=0)


def draw_queries(fine: DescriptorMap, settings: ContrastSettings, generator: torch.Generator) -> Queries:
    """Draw, without replacement, fine voxels of each crop that lie inside the other crop, too.

    Args:
        fine: fine descriptor map; only its shape, affine and validity matter.
        settings: how many.
        generator: source of randomness.
    """
    shape = fine.values.shape[2:]
    positions = map_positions_mm(fine.affine, shape)
    index = apply_affine(inverse_affine(other_crop(fine.affine)), positions.double())
    shared = fine.valid.clone()
    for axis, size in enumerate(shape):
        shared &= (index[..., axis] >= -1e-3) & (index[..., axis] <= size - 1 + 1e-3)
    chosen, present = _draw(shared, settings.positives, generator)
    return Queries(positions.gather(1, chosen[..., None].expand(-1, -1, 3)), present)


def info_nce(positive: Tensor, negatives: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of each query: ``-log(exp(p / t) / (exp(p / t) + sum_k exp(n_k / t)))``.

    Args:
        positive: (...,) cosine of query and counterpart.
        negatives: (..., K) cosines of query and negatives.
        present: bool (..., K), which negatives count.
        temperature: t.

    Returns:
        (...,) losses; 0 for a query without negatives.
    """
    logits = torch.cat([positive[..., None], negatives.masked_fill(~present, -torch.inf)], dim=-1) / temperature
    return torch.logsumexp(logits, dim=-1) - logits[..., 0]


def fine_negatives(
    fine: DescriptorMap, coarse: DescriptorMap, queries: Queries, settings: ContrastSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose fine negatives: valid voxels of both crops beyond the ignored radius, at random among the hardest.

    The mean of fine and coarse cosine ranks them; coarse descriptors are interpolated at the fine voxels. Without
    gradient, one pair at a time, so that memory holds the (2 Q, 2 N) similarities of one pair only.

    Returns:
        indices (V, Q, K) into the fine voxels of all crops, crop by crop, and which of them are present.
    """
    shape, pairs = fine.values.shape[2:], len(fine.values) // 2
    count = fine.valid.shape[1]
    indices, present = [], []
    with torch.no_grad():
        positions = map_positions_mm(fine.affine, shape)
        query_fine = sample_map(fine.values, fine.affine, queries.points_mm)
        query_coarse = sample_map(coarse.values, coarse.affine, queries.points_mm)
        for pair in range(pairs):
            crops = slice(pair, None, pairs)
            far = _distances(queries.points_mm[crops].flatten(0, 1), positions[crops].flatten(0, 1))
            allowed = (far > settings.fine_ignore_mm) & fine.valid[crops].flatten()
            del far  # as large as the similarities
            # Both maps cover the same crop, so resizing is sampling at the fine voxels, only faster.
            coarse_there = F.normalize(F.interpolate(coarse.values[crops], shape, mode="trilinear"), dim=1)
            both = torch.cat([fine.values[crops], coarse_there], dim=1).flatten(2)
            asked = torch.cat([query_fine[crops], query_coarse[crops]], dim=2).flatten(0, 1)
            similarity = torch.cat([asked @ both[0], asked @ both[1]], dim=1)
            chosen, there = _draw_hardest(
                similarity, allowed, settings.fine_hardest, settings.fine_negatives, generator
            )
            # From "first crop of the pair, then second" to "all crops".
            chosen = (chosen // count * pairs + pair) * count + chosen % count
            indices.append(chosen.unflatten(0, (2, -1)))
            present.append(there.unflatten(0, (2, -1)))
    return torch.stack(indices, dim=1).flatten(0, 1), torch.stack(present, dim=1).flatten(0, 1)


def fine_loss(
    fine: DescriptorMap, coarse: DescriptorMap, queries: Queries, settings: ContrastSettings, generator: torch.Generator
) -> ContrastTerms:
    """Return fine InfoNCE (paper: eq. 1 on fine descriptors, hard and diverse negatives).

    Args:
        fine: fine descriptors.
        coarse: coarse descriptors; they only rank the negatives and get no gradient here.
        queries: from :func:`draw_queries`.
        settings: numbers and distances.
        generator: source of randomness.
    """
    chosen, present = fine_negatives(fine, coarse, queries, settings, generator)
    # Only the chosen voxels are compared with gradient: the gradient of all (Q, 2 N) similarities would be the
    # largest tensor of the training step.
    negatives = F.embedding(chosen, _table(fine))
    query, positive = _ask(fine, queries)
    similarity = (negatives @ query[..., None])[..., 0]
    return _terms(positive, similarity, present, queries.present, settings.temperature)


def coarse_negatives(
    coarse: DescriptorMap, queries: Queries, settings: ContrastSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose coarse negatives of the pair: valid voxels of both crops that could not be positives, of the hardest.

    Returns:
        indices (V, Q, K) into the coarse voxels of all crops, crop by crop, and which of them are present.
    """
    with torch.no_grad():
        query = sample_map(coarse.values, coarse.affine, queries.points_mm)
        positions = map_positions_mm(coarse.affine, coarse.values.shape[2:])
        both = torch.cat([positions, other_crop(positions)], dim=1)
        voxels = coarse.values.flatten(2)
        similarity = query @ torch.cat([voxels, other_crop(voxels)], dim=2)
        near = _distances(queries.points_mm, both) < settings.coarse_ignore_mm
        near &= (queries.points_mm[:, :, None, 0] - both[:, None, :, 0]).abs() < settings.coarse_ignore_z_mm
        allowed = ~near & torch.cat([coarse.valid, other_crop(coarse.valid)], dim=1)[:, None]
        chosen, present = _draw_hardest(
            similarity, allowed, settings.coarse_hardest, settings.coarse_negatives, generator
        )
        # From "own crop, then the other" to "all crops".
        crops, count = coarse.valid.shape
        own = torch.arange(crops, device=chosen.device)[:, None, None]
        return torch.where(chosen < count, own, other_crop(own)) * count + chosen % count, present


def global_negatives(coarse: DescriptorMap, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose valid coarse voxels of other volumes of the batch, the same for all queries of a crop.

    Args:
        coarse: coarse descriptors.
        count: at most so many a crop.
        generator: source of randomness.

    Returns:
        indices (V, K) into the coarse voxels of all crops, crop by crop, and which of them are present (none with a
        single volume).
    """
    crops, voxels = coarse.valid.shape
    volume = torch.arange(crops, device=coarse.valid.device) % (crops // 2)
    foreign = (volume[:, None] != volume[None])[:, :, None] & coarse.valid[None]
    return _draw(foreign.reshape(crops, crops * voxels), count, generator)


def coarse_loss(
    coarse: DescriptorMap, queries: Queries, settings: ContrastSettings, generator: torch.Generator
) -> ContrastTerms:
    """Return coarse InfoNCE (paper: eq. 1 on coarse descriptors, negatives of the pair and of other volumes).

    Args:
        coarse: coarse descriptors.
        queries: from :func:`draw_queries`.
        settings: numbers and distances.
        generator: source of randomness.
    """
    chosen, present = coarse_negatives(coarse, queries, settings, generator)
    query, positive = _ask(coarse, queries)
    table = _table(coarse)
    # A coarse map is small: all similarities at once cost less than gathering descriptors.
    similarity = (query @ table.T).gather(2, chosen)
    if settings.global_negatives and len(coarse.values) > 2:
        foreign, there = global_negatives(coarse, settings.global_negatives, generator)
        similarity = torch.cat([similarity, query @ F.embedding(foreign, table).transpose(1, 2)], dim=2)
        present = torch.cat([present, there[:, None].expand(-1, present.shape[1], -1)], dim=2)
    return _terms(positive, similarity, present, queries.present, settings.temperature)


def _table(descriptors: DescriptorMap) -> Tensor:
    """Return descriptors of all voxels of all crops, (V * N, D)."""
    return descriptors.values.flatten(2).transpose(1, 2).flatten(0, 1)


def _ask(descriptors: DescriptorMap, queries: Queries) -> tuple[Tensor, Tensor]:
    """Return descriptors of the queries (V, Q, D) and their cosine with the other crop's at that place (V, Q)."""
    query = sample_map(descriptors.values, descriptors.affine, queries.points_mm)
    key = sample_map(other_crop(descriptors.values), other_crop(descriptors.affine), queries.points_mm)
    return query, (query * key).sum(dim=2)


def _terms(positive: Tensor, negatives: Tensor, present: Tensor, asked: Tensor, temperature: float) -> ContrastTerms:
    """Return mean over the queries that exist and have negatives; (V, Q), (V, Q, K), bool (V, Q, K), bool (V, Q)."""
    counts = asked & present.any(dim=2)
    present = present & counts[..., None]
    total = counts.sum().clamp(min=1)
    losses = info_nce(positive, negatives, present, temperature)
    with torch.no_grad():
        best = negatives.masked_fill(~present, -torch.inf).amax(dim=2)
        accuracy = ((positive > best) & counts).sum() / total
        negative = negatives.masked_fill(~present, 0).sum() / present.sum().clamp(min=1)
    return ContrastTerms(
        (losses * counts).sum() / total, (positive.detach() * counts).sum() / total, negative, accuracy, counts.sum()
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances between points (..., Q, 3) and (..., N, 3): (..., Q, N), without gradient.

    Squares are summed by axis. ``torch.cdist`` by matrix product loses millimetres to cancellation, and its exact form
    starts one CUDA block a distance: a hundred million at crops of 128 voxels.
    """
    squares = ((a[..., :, None, axis] - b[..., None, :, axis]).square_() for axis in range(a.shape[-1]))
    total = next(squares)
    for square in squares:
        total.add_(square)
    return total.sqrt_()


def _draw(allowed: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``count`` allowed entries of each row, without replacement: indices and which of them are allowed."""
    keys = torch.rand(allowed.shape, generator=generator, device=generator.device).to(allowed.device)
    keys, chosen = keys.masked_fill(~allowed, -1.0).topk(min(count, allowed.shape[-1]), dim=-1)
    return chosen, keys >= 0


def _draw_hardest(
    similarity: Tensor, allowed: Tensor, hardest: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw ``count`` of the ``hardest`` most similar allowed entries of each row; overwrites ``similarity``."""
    similarity.masked_fill_(~allowed, -torch.inf)
    top, candidates = similarity.topk(min(hardest, similarity.shape[-1]), dim=-1, sorted=False)
    drawn, present = _draw(top > -torch.inf, count, generator)
    return candidates.gather(-1, drawn), present
