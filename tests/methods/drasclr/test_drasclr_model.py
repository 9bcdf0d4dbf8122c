"""The DrasCLR model: parts of a step recomputed by hand, queues, key encoder, two gloo ranks."""

import copy

import pytest
import torch
from support.gloo_ranks import needs_distributed, on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_alice.methods.distributed import gather_rows
from nnunet_alice.methods.drasclr.conditional import LocationGroups, UnconditionedEncoder
from nnunet_alice.methods.drasclr.conversion import to_conditional
from nnunet_alice.methods.drasclr.losses import drasclr_loss
from nnunet_alice.methods.drasclr.model import DrasCLRModel, PatchEmbedder
from nnunet_alice.methods.drasclr.queue import KeyQueue

DIM, SIZE = 8, 6


def make_encoder():
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, 2, 1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(), nn.Conv3d(4, 6, 3, 1, 1)
    )


def make_model(conditional=True, cells=2, **settings):
    torch.manual_seed(0)
    plain = make_encoder()
    encoder = to_conditional(plain, 3, location_gain=1.0) if conditional else UnconditionedEncoder(plain)
    embedder = PatchEmbedder(encoder, 6, dim=DIM, cells=cells).double()
    return DrasCLRModel(embedder, KeyQueue(SIZE, DIM), **settings)


def make_batch(batch=4, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "view": draw(batch, 1, 6, 6, 6),
        "second_view": draw(batch, 1, 6, 6, 6),
        "location": draw(3).tanh(),
        "neighbours": draw(k, batch, 1, 6, 6, 6),
        "neighbour_locations": draw(k, 3).tanh(),
        "subjects": torch.arange(batch) + 10 * seed,
    }


def embed(embedder, patches, location):
    """Patches represented one at a time, then compared with each other; statistics stay those that the step left."""
    where = LocationGroups(location[None], (1,))
    rows = torch.cat([embedder.represent(patch[None], where) for patch in patches])
    rows = (rows - rows.mean(dim=0)) / (embedder.standardise.variance + 1e-5).sqrt()
    return nn.functional.normalize(embedder.head(rows), dim=1)


def test_parts_of_a_step_are_those_computed_patch_by_patch():
    model, batch = make_model(beta=0.5, temperature=0.3), make_batch()
    queued = nn.functional.normalize(torch.randn(5, DIM), dim=1)
    model.queue.enqueue(queued, torch.tensor([1, 1, 1, 1, 2]), torch.tensor([0, 76, 77, 2, 78]))
    losses = model(landmark=1, **batch)
    query = embed(model.query, batch["view"], batch["location"])
    key = embed(model.key, batch["second_view"], batch["location"])
    around = torch.stack(
        [embed(model.query, batch["neighbours"][j], batch["neighbour_locations"][j]) for j in range(2)]
    )
    # Subjects 0 and 2 meet their own older keys, each its own new one, and nobody the key of landmark 2.
    negatives = torch.cat([queued[:4].half().double(), key])
    ignore = torch.cat([torch.zeros(4, 4, dtype=torch.bool), torch.eye(4, dtype=torch.bool)], dim=1)
    ignore[0, 0] = ignore[2, 3] = True
    ages = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    expected = drasclr_loss(query, key, negatives, around, temperature=0.3, beta=0.5, ignore=ignore, ages=ages)
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(losses, name), value, msg=name)
    assert float(losses.negatives) == (3 + 4 + 3 + 4) / 4 + 3
    assert float(losses.negative_age) == pytest.approx(14 / 26)


def keys_at(model, landmark):
    """Keys and subjects that the queue holds of a landmark, in the order of the slots."""
    seen = model.queue.seen_from(landmark)
    return seen.keys[seen.here], seen.subjects[seen.here].tolist()


def test_keys_enter_after_the_loss_and_only_in_training():
    model, batch = make_model(), make_batch()
    first = model(landmark=2, **batch)
    assert float(first.negatives) == 3 and float(first.negative_age) == 0
    key = embed(model.key, batch["second_view"], batch["location"])
    keys, subjects = keys_at(model, 2)
    torch.testing.assert_close(keys, key.half())
    assert subjects == [0, 1, 2, 3]
    second = model(landmark=2, **make_batch(seed=1))
    assert float(second.negatives) == 7 and float(second.negative_age) == pytest.approx(4 / 7)
    model.eval()
    before = copy.deepcopy(model.queue.state_dict())
    model(landmark=0, **batch)
    assert all(torch.equal(value, before[name]) for name, value in model.queue.state_dict().items())


def test_keys_of_an_earlier_visit_do_not_count():
    """Away and back again, a landmark starts with the keys of the step itself."""
    model = make_model()
    for seed, landmark in enumerate((0, 0, 1, 1)):
        model(landmark=landmark, **make_batch(seed=seed))
    back = model(landmark=0, **make_batch(seed=9))
    assert float(back.negatives) == 3 and float(back.negative_age) == 0


def test_only_the_query_encoder_learns_and_the_key_encoder_follows():
    model, batch = make_model(), make_batch()
    assert not any(parameter.requires_grad for parameter in model.key.parameters())
    model(landmark=0, **batch).total.backward()
    assert all(parameter.grad is not None for parameter in model.query.parameters())
    # All but the bias in front of the instance normalisation, which takes it away again.
    assert all(p.grad.abs().max() > 0 for n, p in model.query.named_parameters() if "encoder.0.bias" not in n)
    with torch.no_grad():
        for parameter in model.query.parameters():
            parameter += 1
    before, query = copy.deepcopy(model.key.state_dict()), model.query.state_dict()
    model.update_key_encoder(0.9)
    for name, value in model.key.named_parameters():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * query[name])
    assert all(torch.equal(value, query[name]) for name, value in model.key.named_buffers())


def test_locations_matter_unless_ablated():
    def embeddings(model):
        batch = make_batch()
        here, there = (LocationGroups(torch.full((1, 3), v, dtype=torch.float64), (4,)) for v in (-1.0, 1.0))
        return model.query(batch["view"], here), model.query(batch["view"], there)

    one, two = embeddings(make_model())
    assert (one - two).abs().max() > 1e-3
    one, two = embeddings(make_model(conditional=False))
    assert torch.equal(one, two)


def test_without_neighbours_the_regional_term_is_left_out():
    model, batch = make_model(), make_batch()
    del batch["neighbours"], batch["neighbour_locations"]
    losses = model(landmark=0, **batch)
    assert float(losses.total.detach()) == pytest.approx(float(losses.local)) and float(losses.regional) == 0


def test_resume_gives_the_same_next_step():
    model = make_model()
    optimizer = torch.optim.SGD(model.query.parameters(), lr=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        model(landmark=1, **make_batch(seed=seed)).total.backward()
        optimizer.step()
        model.update_key_encoder(0.9)
    twin = make_model()
    twin.load_state_dict(model.state_dict())
    one, two = (m(landmark=1, **make_batch(seed=4)) for m in (model, twin))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_works_under_autocast():
    model = make_model()
    model.query.float(), model.key.float()
    batch = {name: value if name == "subjects" else value.float() for name, value in make_batch().items()}
    model(landmark=0, **batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(landmark=0, **batch)
    exact = model.eval()(landmark=0, **batch)
    losses.total.backward()
    assert losses.total.dtype == torch.float32 and float(exact.total.detach()) > 0
    assert all(parameter.grad.isfinite().all() for parameter in model.query.parameters())


def test_contrast_can_be_learned():
    """Subjects that differ by their texture are told apart after a few steps."""
    torch.manual_seed(3)
    textures = torch.randn(12, 1, 6, 6, 6, dtype=torch.float64)
    model = make_model(cells=3)
    optimizer = torch.optim.Adam(model.query.parameters(), lr=3e-3)
    location = torch.zeros(3, dtype=torch.float64)
    history = []
    for _ in range(60):
        chosen = torch.randperm(12)[:6]
        one, two = (textures[chosen] + 0.1 * torch.randn(6, 1, 6, 6, 6) for _ in range(2))
        losses = model(one, two, location, 0, chosen)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        model.update_key_encoder(0.9)
        history.append(float(losses.local))
    assert sum(history[-5:]) < 0.5 * sum(history[2:7])


def test_bad_input():
    model, batch = make_model(), make_batch()
    with pytest.raises(ValueError, match=r"\(2, "):
        model(landmark=0, **(batch | {"second_view": batch["view"][:2]}))
    with pytest.raises(ValueError, match=r"^Neighbours"):
        model(landmark=0, **(batch | {"neighbour_locations": None}))
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        model(landmark=0, **(batch | {"neighbour_locations": torch.zeros(3, 3)}))
    with pytest.raises(ValueError):
        DrasCLRModel(PatchEmbedder(UnconditionedEncoder(nn.BatchNorm3d(2)), 2), KeyQueue(1, 2))
    with pytest.raises(ValueError, match="cells=0"):
        PatchEmbedder(make_encoder(), 6, cells=0)


def rows_of(batch, rows):
    """The part of a batch that a rank sees."""
    shared = {name: batch[name] for name in ("location", "neighbour_locations")}
    own = {name: batch[name][rows] for name in ("view", "second_view", "subjects")}
    return shared | own | {"neighbours": batch["neighbours"][:, rows]}


def results_of(rank):
    model = make_model()
    wrapped = DistributedDataParallel(model)
    for seed in range(2):
        model.zero_grad()
        batch = make_batch(seed=seed)
        losses = wrapped(landmark=1, **rows_of(batch, slice(2 * rank, 2 * rank + 2)))
        losses.total.backward()
    results = {
        "gradients": {name: p.grad for name, p in model.query.named_parameters()},
        "queue": copy.deepcopy(model.queue.state_dict()),
        "negatives": losses.negatives,
        "variance": model.query.standardise.variance.clone(),
        "rows": gather_rows(torch.arange(3.0)[: 1 + 2 * rank] + 10 * rank),
        "empty": gather_rows(torch.ones(2 * rank, 3)),
    }
    # Where a rank cannot read its landmark it goes to the next: the other's keys do not count.
    apart = wrapped(landmark=2 + rank, **rows_of(batch, slice(2 * rank, 2 * rank + 2)))
    return results | {"apart": copy.deepcopy(model.queue.state_dict()), "negatives apart": apart.negatives}


@pytest.mark.slow
@needs_distributed
def test_two_ranks_give_the_gradient_and_the_queue_of_their_halves_together(tmp_path):
    ranks = on_ranks(results_of, tmp_path)
    halves, variance = [make_model() for _ in range(2)], 0
    for seed in range(2):
        batch = make_batch(seed=seed)
        rows = [rows_of(batch, slice(2 * half, 2 * half + 2)) for half in range(2)]
        seen = torch.cat([represented(model, part) for model, part in zip(halves, rows, strict=True)])
        variance = (seed * variance + seen.square().mean(dim=0)) / (seed + 1)
        keys = []
        for model, part in zip(halves, rows, strict=True):
            model.query.standardise.eval().variance.copy_(variance)  # shared with the key encoder
            keys.append(model.key(part["second_view"], LocationGroups(part["location"][None], (2,))))
        queue = copy.deepcopy(halves[0].queue)
        for model, part, others in zip(halves, rows, reversed(keys), strict=True):
            # The other half's keys of this step, put into the queue beforehand, are as good as gathered ones.
            model.queue.load_state_dict(queue.state_dict())
            model.queue.enqueue(others, torch.ones(2, dtype=torch.int64), rows[model is halves[0]]["subjects"])
            model.zero_grad()
            model(landmark=1, **part).total.backward()
            model.queue.load_state_dict(queue.state_dict())
        subjects = torch.cat([part["subjects"] for part in rows])
        queue.enqueue(torch.cat(keys), torch.ones(4, dtype=torch.int64), subjects)
        for model in halves:
            model.queue.load_state_dict(queue.state_dict())
    for results in ranks:
        torch.testing.assert_close(results["variance"], variance)
        for (name, parameter), other in zip(
            halves[0].query.named_parameters(), halves[1].query.parameters(), strict=True
        ):
            # Keys pass through half precision in one of the two.
            mean = (parameter.grad + other.grad) / 2
            torch.testing.assert_close(results["gradients"][name], mean, msg=name, atol=2e-4, rtol=2e-3)
        for name, value in queue.state_dict().items():
            torch.testing.assert_close(results["queue"][name], value, msg=name)
        assert float(results["negatives"]) == 7 and float(results["negatives apart"]) == 1
        assert results["rows"].tolist() == [0, 10, 11, 12]
        assert results["empty"].shape == (2, 3)
        assert results["apart"]["landmarks"].tolist().count(2) == results["apart"]["landmarks"].tolist().count(3) == 2
    for name, value in ranks[0]["apart"].items():
        assert torch.equal(value, ranks[1]["apart"][name])


@torch.no_grad()
def represented(model, part):
    """Rows of all passes of the query encoder, each landmark's centred."""
    patches = torch.cat([part["view"][None], part["neighbours"]])
    points = torch.cat([part["location"][None], part["neighbour_locations"]])
    rows = [model.query.represent(x, LocationGroups(p[None], (len(x),))) for x, p in zip(patches, points, strict=True)]
    return torch.cat([row - row.mean(dim=0) for row in rows])
