"""The network of the plans with both heads, and everything it is trained by (Yan et al., TMI 2022, sec. III)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_alice.methods.embedding.heads import DIMENSION, Descriptors, EmbeddingHeads, embedding_strides
from nnunet_alice.methods.embedding.losses import (
    ContrastSettings,
    DescriptorMap,
    Queries,
    coarse_loss,
    draw_queries,
    fine_loss,
    other_crop,
)
from nnunet_alice.methods.embedding.positions import feature_affine, map_positions_mm, sample_map
from nnunet_alice.methods.intermediate_features import IntermediateFeatures, freeze_unused_decoder
from nnunet_alice.methods.unets import decoder_of, encoder_of


class EmbeddingNetwork(nn.Module):
    """A U-Net that gives every voxel a coarse and a fine descriptor.

    The encoder and all decoder stages but the last run; the last one and the segmentation layers are not trained.

    Args:
        network: nnU-Net network (``IntermediateFeatures`` says which); held, not copied.
        dimension: length of one descriptor.

    Raises:
        ValueError: the network has fewer than three stages.
    """

    def __init__(self, network: nn.Module, dimension: int = DIMENSION) -> None:
        super().__init__()
        self.backbone = IntermediateFeatures(network)
        encoder = encoder_of(network)
        strides = [(stride,) * 3 if isinstance(stride, int) else tuple(stride) for stride in encoder.strides]
        coarse_stride, fine_stride = embedding_strides(strides)
        self.decoder_stages = len(decoder_of(network).stages) - 1
        freeze_unused_decoder(network, self.decoder_stages)
        channels = encoder.output_channels
        self.heads = EmbeddingHeads(channels[-1], channels[1], coarse_stride, fine_stride, dimension)

    def forward(self, crops: Tensor) -> Descriptors:
        """Return descriptor maps of crops (V, C, *patch)."""
        maps = self.backbone(crops, self.decoder_stages)
        return self.heads(maps.bottleneck, maps.decoder[-1])


class EmbeddingStep(NamedTuple):
    """Result of one step.

    Attributes:
        loss: scalar to minimise, fine plus coarse (the paper weighs both alike).
        terms: named scalars, detached.
        fine: fine descriptors and where they lie.
        coarse: coarse descriptors and where they lie.
        queries: the points that were asked.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    fine: DescriptorMap
    coarse: DescriptorMap
    queries: Queries


def contrast(
    descriptors: Descriptors,
    heads: EmbeddingHeads,
    affine: Tensor,
    fine_valid: Tensor,
    coarse_valid: Tensor,
    settings: ContrastSettings,
    generator: torch.Generator,
) -> EmbeddingStep:
    """Return both losses of a batch of pairs of crops, in full precision.

    Args:
        descriptors: of V = 2 P crops; crop i and crop i + P show the same volume.
        heads: for the strides of the maps.
        affine: (V, 4, 4) float32, voxel of the crop -> mm in its volume.
        fine_valid: bool (V, N), voxels of the fine map that lie in the body.
        coarse_valid: bool (V, N'), those of the coarse map.
        settings: numbers of the method.
        generator: source of randomness.
    """
    with torch.autocast(affine.device.type, enabled=False):
        fine = DescriptorMap(descriptors.fine.float(), feature_affine(affine, heads.fine_stride), fine_valid)
        coarse = DescriptorMap(descriptors.coarse.float(), feature_affine(affine, heads.coarse_stride), coarse_valid)
        queries = draw_queries(fine, settings, generator)
        fine_terms = fine_loss(fine, coarse, queries, settings, generator)
        coarse_terms = coarse_loss(coarse, queries, settings, generator)
        loss = fine_terms.loss + coarse_terms.loss
    terms = {"loss": loss.detach()}
    for name, part in (("fine", fine_terms), ("coarse", coarse_terms)):
        terms[f"loss_{name}"] = part.loss.detach()
        terms[f"accuracy_{name}"] = part.accuracy
        terms[f"cosine_{name}_positive"] = part.positive
        terms[f"cosine_{name}_negative"] = part.negative
    terms["queries"] = fine_terms.queries.float()
    return EmbeddingStep(loss, terms, fine, coarse, queries)


@torch.no_grad()
def matching_errors_mm(fine: DescriptorMap, coarse: DescriptorMap, queries: Queries) -> tuple[Tensor, Tensor]:
    """Return how far off the most similar fine voxel of the other crop is, by the mean of both cosines.

    Args:
        fine: fine descriptors of V crops.
        coarse: coarse descriptors.
        queries: points that the other crop shows too.

    Returns:
        (n,) errors in mm of all n queries that exist, and for comparison (n,) the mean distance of each query to all
        voxels among which its match was looked for: what a random answer would give.
    """
    there = map_positions_mm(other_crop(fine.affine), fine.values.shape[2:])
    asked = torch.cat([sample_map(m.values, m.affine, queries.points_mm) for m in (fine, coarse)], dim=2)
    offered_fine = other_crop(fine.values).flatten(2).transpose(1, 2)
    offered_coarse = sample_map(other_crop(coarse.values), other_crop(coarse.affine), there)
    offered = torch.cat([offered_fine, offered_coarse], dim=2)
    similarity = (asked @ offered.transpose(1, 2)).masked_fill(~other_crop(fine.valid)[:, None], -torch.inf)
    best = similarity.argmax(dim=2)
    found = there.gather(1, best[..., None].expand(-1, -1, 3))
    valid = other_crop(fine.valid)[:, None].float()
    distances = torch.cdist(queries.points_mm, there)
    chance = (distances * valid).sum(dim=2) / valid.sum(dim=2).clamp(min=1)
    error = (found - queries.points_mm).norm(dim=2)
    return error[queries.present], chance[queries.present]


@torch.no_grad()
def similarity_maps(
    fine: DescriptorMap, coarse: DescriptorMap, query: int, target: int, point_mm: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the cosine of one point of one crop with every voxel of a different one.

    Args:
        fine: fine descriptors of V crops.
        coarse: coarse descriptors.
        query: crop that the point lies in.
        target: crop that is compared with it.
        point_mm: (3,) mm in the volume of the query crop.
        shape: (3,) size of a crop, to which the maps are brought.

    Returns:
        fine and coarse similarity, (*shape) each, in [-1, 1].
    """
    maps = []
    for descriptors in (fine, coarse):
        one = slice(query, query + 1)
        asked = sample_map(descriptors.values[one], descriptors.affine[one], point_mm[None, None])[0, 0]
        values = torch.einsum("d,dzyx->zyx", asked, descriptors.values[target])
        maps.append(F.interpolate(values[None, None], shape, mode="trilinear")[0, 0])
    return maps[0], maps[1]
