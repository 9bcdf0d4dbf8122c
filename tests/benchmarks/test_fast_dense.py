"""``L_dense`` of the search: shared points show the same place, and the loss is what a loop computes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_alice.anatomy.geometry import CaseGeometry

sys.path.append(str(Path(__file__).parents[2]))  # last, so that the installed package is taken

from benchmarks.fast.dense import Frame, SharedPoints, dense_loss, features_at, shared_points
from benchmarks.fast.views import points_of, random_map, sample

SIZE = (10, 12, 14)


def test_shared_points_show_the_same_place_in_both_views():
    rng, shape, spacing = np.random.default_rng(0), (30, 32, 34), (2.0, 2.0, 2.0)
    body = np.ones(shape, bool)
    body[:12] = False
    geometry = CaseGeometry("case", shape, spacing, (1, 1, 1), shape, np.zeros(shape, np.uint8), np.packbits(body))
    frames = [Frame(np.array([15.0, 16, 17]) + rng.uniform(-2, 2, 3), random_map(rng, 1.0)) for _ in range(2)]
    coordinates = torch.from_numpy(np.indices(shape)).float()[None]
    views = [sample(coordinates, points_of(frame.centre, frame.matrix, SIZE)) for frame in frames]
    points = shared_points([(geometry, *frames)], SIZE, rng)
    usable = points.usable[0]
    places = [
        features_at(view[None], where, SIZE)[0]
        for view, where in zip(views, (points.query, points.anchor), strict=True)
    ]
    assert usable.sum() > 20
    for found in places:
        torch.testing.assert_close(2 * found[usable], points.place_mm[0][usable], rtol=0, atol=1e-3)
    assert points.place_mm[0][usable][:, 0].min() >= 2 * 11.5


def test_the_loss_is_what_a_loop_computes():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 6, 4, generator=generator) for _ in range(2))
    places = 12 * torch.rand(2, 6, 3, generator=generator)
    usable = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    loss, found = dense_loss(query, key, SharedPoints(places, places, places, usable))
    terms, hits = [], []
    for pair, point in usable.nonzero().tolist():
        rivals = [point] + [
            other
            for other in range(6)
            if other != point and usable[pair, other] and torch.dist(places[pair, point], places[pair, other]) >= 10
        ]
        cosines = [torch.cosine_similarity(query[pair, point], key[pair, other], dim=0) / 0.1 for other in rivals]
        terms.append(-torch.stack(cosines).log_softmax(0)[0])
        hits.append(max(range(len(rivals)), key=cosines.__getitem__) == 0)
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    assert found.item() == pytest.approx(np.mean(hits))
