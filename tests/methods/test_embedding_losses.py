"""The embedding's InfoNCE, ignored voxels and hard negatives against loops over points, voxels and pairs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_alice.methods.embedding.losses import (
    ContrastSettings,
    DescriptorMap,
    Queries,
    _distances,
    coarse_loss,
    coarse_negatives,
    draw_queries,
    fine_loss,
    fine_negatives,
    global_negatives,
    info_nce,
    other_crop,
)
from nnunet_alice.methods.embedding.positions import (
    feature_affine,
    map_positions_mm,
    sample_map,
)

SPACING = (3.0, 1.0, 1.5)  # anisotropic on purpose
SETTINGS = ContrastSettings(
    positives=7,
    fine_ignore_mm=6.0,
    fine_hardest=40,
    fine_negatives=15,
    coarse_ignore_mm=9.0,
    coarse_ignore_z_mm=5.0,
    coarse_hardest=8,
    coarse_negatives=5,
    global_negatives=6,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crop_affines(pairs: int = 2) -> torch.Tensor:
    """2 P crops with their own scale and shift, so that no two grids coincide."""
    rng = np.random.default_rng(5)
    affines = torch.eye(4, dtype=torch.float32).repeat(2 * pairs, 1, 1)
    for affine in affines:
        scale = rng.uniform(0.9, 1.1)
        for axis in range(3):
            affine[axis, axis] = SPACING[axis] * scale
            affine[axis, 3] = rng.uniform(0, 4) * SPACING[axis]
    return affines


def maps(pairs: int = 2, seed: int = 0) -> tuple[DescriptorMap, DescriptorMap]:
    """Random unit descriptors of crops of 8 x 16 x 12 voxels, fine stride (1, 2, 2) and coarse stride (2, 4, 4)."""
    g = generator(seed)
    affines = crop_affines(pairs)
    made = []
    for shape, stride in (((8, 8, 6), (1, 2, 2)), ((4, 4, 3), (2, 4, 4))):
        values = F.normalize(torch.randn(2 * pairs, 5, *shape, generator=g), dim=1).requires_grad_()
        affine = feature_affine(affines, stride)
        extent = torch.tensor([[30.0, 18.0, 19.0]]).repeat(2 * pairs, 1)
        positions = map_positions_mm(affine, shape)
        made.append(DescriptorMap(values, affine, ((positions >= 0) & (positions <= extent[:, None])).all(dim=2)))
    return made[0], made[1]


def query_rows(queries: Queries):
    for crop in range(len(queries.points_mm)):
        for q in range(queries.points_mm.shape[1]):
            if queries.present[crop, q]:
                yield crop, q


def hard_set(similarity: torch.Tensor, allowed: list[bool], hardest: int) -> set[int]:
    ranked = sorted((i for i, ok in enumerate(allowed) if ok), key=lambda i: -similarity[i].item())
    return set(ranked[:hardest])


def test_feature_positions_are_the_middles_of_their_blocks():
    positions = map_positions_mm(feature_affine(crop_affines(1), (1, 2, 4)), (2, 3, 2)).reshape(2, 2, 3, 2, 3)
    affine = crop_affines(1)[1]
    block_voxels = [[1, y, x] for y in (2, 3) for x in (4, 5, 6, 7)]  # feature (1, 1, 1)
    middle = torch.tensor(block_voxels, dtype=torch.float32).mean(dim=0)
    torch.testing.assert_close(positions[1, 1, 1, 1], affine[:3, :3] @ middle + affine[:3, 3])


def test_sampling_at_voxels_gives_their_descriptors_and_between_them_the_normalised_mean():
    fine, _ = maps()
    positions = map_positions_mm(fine.affine, fine.values.shape[2:])
    torch.testing.assert_close(
        sample_map(fine.values, fine.affine, positions), fine.values.flatten(2).transpose(1, 2), atol=1e-4, rtol=0
    )
    first, second = fine.values[1, :, 3, 4, 2], fine.values[1, :, 3, 5, 2]
    index = torch.tensor([3, 4.5, 2])
    point = fine.affine[:, :3, :3] @ index + fine.affine[:, :3, 3]
    sampled = sample_map(fine.values, fine.affine, point[:, None])[1, 0]
    torch.testing.assert_close(sampled, F.normalize(first + second, dim=0), atol=1e-4, rtol=0)


def test_queries_are_valid_voxels_that_the_other_crop_shows():
    fine, _ = maps()
    settings = replace(SETTINGS, positives=10_000)
    queries = draw_queries(fine, settings, generator())
    positions = map_positions_mm(fine.affine, fine.values.shape[2:])
    for crop in range(4):
        other = (crop + 2) % 4
        expected = set()
        for voxel, point in enumerate(positions[crop]):
            index = torch.linalg.solve(fine.affine[other, :3, :3], point - fine.affine[other, :3, 3])
            if fine.valid[crop, voxel] and all(
                -1e-3 <= i <= n - 1 + 1e-3 for i, n in zip(index, (8, 8, 6), strict=True)
            ):
                expected.add(tuple(point.tolist()))
        drawn = [tuple(p.tolist()) for p in queries.points_mm[crop][queries.present[crop]]]
        assert len(drawn) == len(set(drawn)) == len(expected) > 10
        assert set(drawn) == expected


def test_crops_that_share_nothing_give_no_query_and_no_loss():
    fine, coarse = maps(pairs=1)
    affine = fine.affine.clone()
    affine[1, 0, 3] += 500
    fine = fine._replace(affine=affine)
    queries = draw_queries(fine, SETTINGS, generator())
    assert not queries.present.any()
    terms = fine_loss(fine, coarse, queries, SETTINGS, generator())
    assert terms.loss == 0 and terms.queries == 0
    terms.loss.backward()
    assert (fine.values.grad == 0).all()


def test_info_nce_against_hand_value_and_loop():
    value = info_nce(torch.tensor(0.5), torch.tensor([0.0, 0.5]), torch.tensor([True, True]), 0.5)
    assert value.item() == pytest.approx(math.log(2 + math.exp(-1)))
    assert info_nce(torch.tensor(0.5), torch.tensor([0.9]), torch.tensor([False]), 0.5) == 0
    g = generator(3)
    positive, negatives = torch.rand(4, generator=g), torch.rand(4, 6, generator=g)
    present = torch.rand(4, 6, generator=g) > 0.3
    for q in range(4):
        terms = [math.exp(n / 0.3) for n, there in zip(negatives[q].tolist(), present[q], strict=True) if there]
        p = math.exp(positive[q].item() / 0.3)
        expected = -math.log(p / (p + sum(terms)))
        assert info_nce(positive, negatives, present, 0.3)[q].item() == pytest.approx(expected, rel=1e-5)


def test_distances_are_exact_far_from_the_origin():
    """Where the matrix-product form of the same distances loses millimetres."""
    points = 1000 + 50 * torch.rand(2, 300, 3, generator=generator())
    exact = torch.cdist(points[:, :40].double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert (_distances(points[:, :40], points).double() - exact).abs().max() < 1e-3
    by_products = torch.cdist(points[:, :40], points, compute_mode="use_mm_for_euclid_dist")
    assert (by_products.double() - exact).abs().max() > 0.1


@pytest.mark.slow
def test_fine_negatives_are_drawn_among_the_hardest_beyond_the_ignored_radius():
    fine, coarse = maps()
    queries = draw_queries(fine, SETTINGS, generator())
    chosen, present = fine_negatives(fine, coarse, queries, SETTINGS, generator(1))
    positions = map_positions_mm(fine.affine, fine.values.shape[2:])
    checked = ignored = 0
    with torch.no_grad():
        for crop, q in query_rows(queries):
            other = (crop + 2) % 4
            point = queries.points_mm[crop, q]
            ask = [
                sample_map(m.values[crop : crop + 1], m.affine[crop : crop + 1], point[None, None])[0, 0]
                for m in (fine, coarse)
            ]
            similarity, allowed = [], []
            for c in range(4):
                at_fine = sample_map(coarse.values[c : c + 1], coarse.affine[c : c + 1], positions[c : c + 1])[0]
                for voxel, position in enumerate(positions[c]):
                    s = ask[0] @ fine.values[c].flatten(1)[:, voxel] + ask[1] @ at_fine[voxel]
                    far = math.dist(point.tolist(), position.tolist()) > SETTINGS.fine_ignore_mm
                    similarity.append(s)
                    allowed.append(c in (crop, other) and far and bool(fine.valid[c, voxel]))
                    ignored += not far
            candidates = hard_set(torch.stack(similarity), allowed, SETTINGS.fine_hardest)
            drawn = chosen[crop, q][present[crop, q]].tolist()
            assert len(set(drawn)) == SETTINGS.fine_negatives
            assert set(drawn) <= candidates
            checked += 1
    assert checked == 4 * SETTINGS.positives and ignored > 100


def test_coarse_negatives_leave_out_whatever_could_be_a_positive():
    fine, coarse = maps()
    queries = draw_queries(fine, SETTINGS, generator())
    chosen, present = coarse_negatives(coarse, queries, SETTINGS, generator(1))
    positions = map_positions_mm(coarse.affine, coarse.values.shape[2:])
    above_in_z = 0
    with torch.no_grad():
        for crop, q in query_rows(queries):
            other = (crop + 2) % 4
            point = queries.points_mm[crop, q]
            ask = sample_map(coarse.values[crop : crop + 1], coarse.affine[crop : crop + 1], point[None, None])[0, 0]
            similarity, allowed = [], []
            for c in range(4):
                for voxel, position in enumerate(positions[c]):
                    near = math.dist(point.tolist(), position.tolist()) < SETTINGS.coarse_ignore_mm
                    level = abs(point[0] - position[0]) < SETTINGS.coarse_ignore_z_mm
                    above_in_z += bool(near and not level)
                    similarity.append(ask @ coarse.values[c].flatten(1)[:, voxel])
                    allowed.append(c in (crop, other) and not (near and level) and bool(coarse.valid[c, voxel]))
            candidates = hard_set(torch.stack(similarity), allowed, SETTINGS.coarse_hardest)
            drawn = chosen[crop, q][present[crop, q]].tolist()
            assert set(drawn) <= candidates and len(set(drawn)) == len(drawn)
            assert len(drawn) == min(SETTINGS.coarse_negatives, sum(allowed))
    assert above_in_z > 0


def test_global_negatives_come_from_other_volumes_only():
    _, coarse = maps(pairs=3)
    chosen, present = global_negatives(coarse, 10_000, generator())
    voxels = coarse.valid.shape[1]
    for crop in range(6):
        drawn = chosen[crop][present[crop]]
        sources = set((drawn // voxels).tolist())
        assert sources == {c for c in range(6) if c % 3 != crop % 3}
        assert coarse.valid.flatten()[drawn].all()
        assert len(drawn) == sum(int(coarse.valid[c].sum()) for c in sources)
    _, alone = maps(pairs=1)
    assert not global_negatives(alone, 10, generator())[1].any()


def test_fine_loss_equals_the_loop_over_its_own_negatives():
    fine, coarse = maps()
    queries = draw_queries(fine, SETTINGS, generator())
    terms = fine_loss(fine, coarse, queries, SETTINGS, generator(2))
    chosen, _ = fine_negatives(fine, coarse, queries, SETTINGS, generator(2))
    everything = fine.values.flatten(2).transpose(1, 2).reshape(-1, 5)
    losses, hits = [], []
    for crop, q in query_rows(queries):
        other = (crop + 2) % 4
        point = queries.points_mm[crop, q][None, None]
        ask, key = (sample_map(fine.values[c : c + 1], fine.affine[c : c + 1], point)[0, 0] for c in (crop, other))
        negatives = [ask @ everything[i] for i in chosen[crop, q]]
        logits = torch.stack([ask @ key, *negatives]) / SETTINGS.temperature
        losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
        hits.append(bool(logits[0] > logits[1:].max()))
    torch.testing.assert_close(terms.loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert terms.accuracy.item() == pytest.approx(np.mean(hits))
    grads = [torch.autograd.grad(v, fine.values)[0] for v in (terms.loss, torch.stack(losses).mean())]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-6)
    assert grads[0].abs().sum() > 0


def test_coarse_loss_equals_the_loop_over_its_own_negatives():
    fine, coarse = maps()
    queries = draw_queries(fine, SETTINGS, generator())
    terms = coarse_loss(coarse, queries, SETTINGS, generator(2))
    g = generator(2)
    chosen, present = coarse_negatives(coarse, queries, SETTINGS, g)
    foreign, there = global_negatives(coarse, SETTINGS.global_negatives, g)
    assert there.all()
    everything = coarse.values.flatten(2).transpose(1, 2).reshape(-1, 5)
    losses = []
    for crop, q in query_rows(queries):
        other = (crop + 2) % 4
        point = queries.points_mm[crop, q][None, None]
        ask, key = (sample_map(coarse.values[c : c + 1], coarse.affine[c : c + 1], point)[0, 0] for c in (crop, other))
        negatives = [ask @ everything[i] for i in chosen[crop, q][present[crop, q]]]
        negatives += [ask @ everything[i] for i in foreign[crop]]
        logits = torch.stack([ask @ key, *negatives]) / SETTINGS.temperature
        losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    torch.testing.assert_close(terms.loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(terms.loss, coarse.values)[0]
    expected = torch.autograd.grad(torch.stack(losses).mean(), coarse.values)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_too_few_voxels_give_fewer_negatives_instead_of_ignored_ones():
    fine, coarse = maps()
    huge = replace(
        SETTINGS, fine_ignore_mm=1000.0, coarse_ignore_mm=1000.0, coarse_ignore_z_mm=1000.0, global_negatives=0
    )
    queries = draw_queries(fine, huge, generator())
    for terms in (fine_loss(fine, coarse, queries, huge, generator()), coarse_loss(coarse, queries, huge, generator())):
        assert terms.queries == 0 and terms.loss == 0
    few = replace(SETTINGS, fine_hardest=100_000, fine_negatives=100_000)
    _, present = fine_negatives(fine, coarse, queries, few, generator())
    distance = torch.cdist(queries.points_mm, map_positions_mm(fine.affine, (8, 8, 6)))
    own = ((distance > few.fine_ignore_mm) & fine.valid[:, None]).sum(dim=2)
    distance = torch.cdist(queries.points_mm, other_crop(map_positions_mm(fine.affine, (8, 8, 6))))
    others = ((distance > few.fine_ignore_mm) & other_crop(fine.valid)[:, None]).sum(dim=2)
    assert torch.equal(present.sum(dim=2), own + others)


def test_perfect_descriptors_lose_less_than_random_and_collapsed_ones():
    """Descriptors that are a smooth function of the place: counterparts agree, far voxels differ."""
    fine, coarse = maps()
    g = generator(9)
    frequencies, phases = torch.randn(3, 64, generator=g) / 4, torch.rand(64, generator=g) * 2 * math.pi

    def place_descriptors(m: DescriptorMap) -> DescriptorMap:
        positions = map_positions_mm(m.affine, m.values.shape[2:])
        values = F.normalize(torch.cos(positions @ frequencies + phases), dim=2).transpose(1, 2)
        return m._replace(values=values.reshape(*values.shape[:2], *m.values.shape[2:]))

    queries = draw_queries(fine, SETTINGS, generator())
    good = fine_loss(place_descriptors(fine), place_descriptors(coarse), queries, SETTINGS, generator())
    random = fine_loss(fine, coarse, queries, SETTINGS, generator())
    same = fine._replace(values=torch.ones_like(fine.values) / math.sqrt(5))
    collapsed = fine_loss(same, coarse, queries, SETTINGS, generator())
    assert good.loss < random.loss - 0.5 and good.accuracy > 0.9
    assert collapsed.loss.item() == pytest.approx(math.log(1 + SETTINGS.fine_negatives), rel=1e-4)
    assert collapsed.negative.item() == pytest.approx(collapsed.positive.item(), abs=1e-5)


def test_the_same_generator_state_gives_the_same_loss():
    fine, coarse = maps()
    values = [
        fine_loss(fine, coarse, draw_queries(fine, SETTINGS, generator(s)), SETTINGS, generator(s)).loss.item()
        for s in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_scaled_settings_shrink_with_the_crop_and_never_grow():
    hippocampus = ContrastSettings().scaled((35, 50, 35))
    assert hippocampus.fine_ignore_mm == pytest.approx(20 * (35 * 50 * 35 / (64 * 192 * 192)) ** (1 / 3))
    assert 5 < hippocampus.fine_ignore_mm < 7
    assert hippocampus.coarse_ignore_z_mm == pytest.approx(6 * 35 / 64)
    assert ContrastSettings().scaled((640, 1920, 1920)) == ContrastSettings()
    assert ContrastSettings().scaled((64, 192, 192)) == ContrastSettings()
    with pytest.raises(ValueError, match="crop_extent_mm"):
        ContrastSettings().scaled((35, 0, 35))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"temperature": 0}, "temperature"), ({"positives": -1}, "positives"), ({"fine_negatives": 3000}, "fine_hardest")],
)
def test_impossible_settings_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        ContrastSettings(**change)
