"""``L_dense``, a hypothesis: a voxel of the masked view finds itself among the voxels of a second view.

Dense InfoNCE within one volume, on decoder features. The student's features of the query view have to name the momentum
teacher's features at the same place of the anchor view. That shows it under other intensities and a different affine
map. Negatives are other voxels of the same pair, farther than a radius.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.methods.ema import frozen_copy, update_ema
from nnunet_alice.methods.schedules import cosine

#: Decoder stages that are asked: half and full resolution.
LEVELS = 2
_POINTS = 192
_RADIUS_MM = 10.0
_TEMPERATURE = 0.1
_WIDTH = 64
_START_MOMENTUM = 0.98


class Frame(NamedTuple):
    """Where a view lies: voxel v of the view shows ``centre + matrix @ (v - (size - 1) / 2)`` of the case.

    Attributes:
        centre: (3,) voxels of the case.
        matrix: (3, 3).
    """

    centre: np.ndarray
    matrix: np.ndarray


class SharedPoints(NamedTuple):
    """Places that both views of each of P pairs show.

    Attributes:
        query: (P, N, 3) voxels of the query view, (z, y, x).
        anchor: (P, N, 3) voxels of the anchor view.
        place_mm: (P, N, 3) where they lie in the case.
        usable: (P, N) bool: in the body and in both views.
    """

    query: Tensor
    anchor: Tensor
    place_mm: Tensor
    usable: Tensor


def shared_points(
    pairs: Sequence[tuple[CaseGeometry, Frame, Frame]], size: Sequence[int], rng: np.random.Generator
) -> SharedPoints:
    """Draw points in the query view of each pair (geometry, query, anchor), and find them in its anchor view."""
    middle = (np.asarray(size) - 1) / 2
    drawn = []
    for geometry, query, anchor in pairs:
        here = rng.uniform(0, np.asarray(size) - 1, (_POINTS, 3))
        place = (here - middle) @ query.matrix.T + query.centre
        there = np.linalg.solve(anchor.matrix, (place - anchor.centre).T).T + middle
        inside = ((there >= 0) & (there <= 2 * middle)).all(axis=1)
        drawn.append((here, there, place * geometry.spacing, inside & geometry.in_body(place, 0)))
    queries, anchors, places, usable = (torch.from_numpy(np.stack(values)) for values in zip(*drawn, strict=True))
    return SharedPoints(queries.float(), anchors.float(), places.float(), usable)


def features_at(maps: Tensor, points: Tensor, size: Sequence[int]) -> Tensor:
    """Return features (P, N, C) of maps (P, C, z, y, x) at points (P, N, 3), voxels of the views of ``size``."""
    grid = (2 * (points + 0.5) / torch.tensor(size) - 1).flip(-1)[:, :, None, None]
    return F.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False)[..., 0, 0].transpose(1, 2)


def dense_loss(query: Tensor, key: Tensor, points: SharedPoints) -> tuple[Tensor, Tensor]:
    """Return InfoNCE over the usable points of every pair.

    Args:
        query: (P, N, W) of the student.
        key: (P, N, W) of the teacher at the same places.
        points: where they lie.

    Returns:
        the loss, and the share of points that are found among those of their pair.
    """
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(1, 2) / _TEMPERATURE
    own = torch.eye(logits.shape[1], dtype=torch.bool)
    near = torch.cdist(points.place_mm, points.place_mm) < _RADIUS_MM
    logits = logits.masked_fill(~own & (near | ~points.usable[:, None]), -torch.inf)
    each, found = -logits.log_softmax(-1).diagonal(dim1=1, dim2=2), logits.argmax(-1) == torch.arange(len(own))
    count = points.usable.sum().clamp_min(1)
    return each[points.usable].sum() / count, found[points.usable].sum() / count


class DenseTerm(nn.Module):
    """Projections of the student's decoder features, and the teacher's network and projections.

    Args:
        backbone: tapped network of the student.
        channels: of its last decoder stages, lowest resolution first.
    """

    def __init__(self, backbone: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(width, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH)) for width in channels
        )
        self.predictions = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in channels)
        self.teacher = frozen_copy(backbone)
        self.teacher_projections = frozen_copy(self.projections)

    def forward(self, decoder: Sequence[Tensor], anchors: Tensor, points: SharedPoints) -> tuple[Tensor, Tensor]:
        """Return the loss, averaged over the levels, and the share of points found at full resolution.

        Args:
            decoder: the student's maps of the P query views, lowest resolution first.
            anchors: (P, C, *size) anchor views, not masked.
            points: drawn by :func:`shared_points`.
        """
        size = anchors.shape[2:]
        with torch.no_grad():
            targets = self.teacher(anchors).decoder[-LEVELS:]
        losses, found = [], anchors.new_zeros(())
        for level, (maps, target) in enumerate(zip(decoder[-LEVELS:], targets, strict=True)):
            query = self.predictions[level](self.projections[level](features_at(maps, points.query, size)))
            with torch.no_grad():
                key = self.teacher_projections[level](features_at(target, points.anchor, size))
            loss, found = dense_loss(query.float(), key.float(), points)
            losses.append(loss)
        return torch.stack(losses).mean(), found

    def follow(self, backbone: nn.Module, share: float) -> None:
        """Move the teacher after a step; its momentum goes to 1 with the share of the run that is done."""
        momentum = cosine(share, 1.0, _START_MOMENTUM, 1.0)
        update_ema(self.teacher, backbone, momentum)
        update_ema(self.teacher_projections, self.projections, momentum)
