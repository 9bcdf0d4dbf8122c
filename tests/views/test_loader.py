"""Batches are functions of seed, rank and number, whoever makes them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_alice.cropping import crop_centred
from nnunet_alice.views.augmentation import augmented, mild_intensity_augmentation
from nnunet_alice.views.loader import NumberedBatches, start_loader
from nnunet_alice.views.masking import block_shape
from nnunet_alice.views.matched_views import AliceBatch, MatchedViews
from nnunet_alice.views.pairs import PointPair
from nnunet_alice.views.readings import Readings

PATCH = (8, 12, 16)


class RandomPairs:
    """Random points of two volumes."""

    def __init__(self):
        self.readings = Readings()

    def draw(self, rng):
        a, b = rng.uniform(0, 20, size=(2, 3))
        return PointPair("a", "b", a, b, 0.9, 1, True)


def volumes():
    rng = np.random.default_rng(0)
    return {case: rng.normal(size=(2, 20, 22, 24)).astype(np.float32) for case in "ab"}


def views(transform=None):
    return MatchedViews(RandomPairs(), volumes().__getitem__, PATCH, 3, mask_ratio=0.75, transform=transform)


def batches(transform=None, **options):
    return NumberedBatches(views(transform), seed=5, **options)


def same(one, two):
    return torch.equal(one.views, two.views) and torch.equal(one.mask, two.mask)


class Regions:
    """No region anywhere."""

    def open(self, case):
        """Nothing is read."""

    def on_grid(self, case, first_vox, step_vox, size):
        return np.zeros(size, dtype=np.int64)


def test_regions_are_asked_for_inside_of_views_that_are_thinner_than_their_grid():
    thin = MatchedViews(
        RandomPairs(), volumes().__getitem__, (2, 8, 8), 1, mask_ratio=0.5, transform=None, regions=Regions()
    )
    found = [thin(number, np.random.default_rng(number)).regions_first.tolist() for number in range(20)]
    assert np.max(found, axis=0).tolist() == [1, 2, 2] and np.min(found) == 0


def test_a_batch_holds_query_then_anchor_views_around_the_points():
    batch = next(batches())
    assert batch.views.shape == (6, 2, *PATCH) and batch.mask.shape == (6, *PATCH)
    images = volumes()
    for index, pair in enumerate(batch.pairs):
        np.testing.assert_array_equal(batch.views[index], crop_centred(images["a"], pair.point_a, PATCH))
        np.testing.assert_array_equal(batch.views[3 + index], crop_centred(images["b"], pair.point_b, PATCH))


def test_a_batch_says_where_the_body_is():
    body = {case: np.random.default_rng(ord(case)).random((1, 20, 22, 24)) < 0.5 for case in "ab"}
    pads, asked = 30, views()

    def crop(case, first, size):
        padded = np.pad(body[case][0], pads)
        return padded[tuple(slice(f + pads, f + pads + n) for f, n in zip(first, size, strict=True))]

    asked.body_crop = crop
    with_body, without = (made(0, np.random.default_rng(3)) for made in (asked, views()))
    assert same(with_body, without) and without.body is None
    for index, pair in enumerate(with_body.pairs):
        np.testing.assert_array_equal(with_body.body[index], crop_centred(body["a"], pair.point_a, PATCH)[0] > 0)
        np.testing.assert_array_equal(with_body.body[3 + index], crop_centred(body["b"], pair.point_b, PATCH)[0] > 0)


def test_every_view_has_its_own_mask_of_the_right_share():
    batch = next(batches())
    blocks = np.prod([-(-p // b) for p, b in zip(PATCH, block_shape(PATCH), strict=True)])
    share = batch.mask.float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(share, torch.full((6,), round(0.75 * blocks) / blocks))
    assert len({mask.numpy().tobytes() for mask in batch.mask}) == 6


def test_continuing_at_a_batch_gives_what_the_whole_run_gave():
    transform = mild_intensity_augmentation(1.0)
    whole = [batch for batch, _ in zip(batches(transform), range(5), strict=False)]
    later = [batch for batch, _ in zip(batches(transform, start=3), range(2), strict=False)]
    assert all(map(same, whole[3:], later))
    assert not same(whole[0], whole[1])


def test_ranks_and_seeds_see_other_batches():
    first = next(batches())
    assert not same(first, next(batches(rank=1)))
    assert not same(first, next(NumberedBatches(views(), seed=6)))


def test_numbers_wrap_around():
    loader = batches(period=2)
    drawn = [next(loader) for _ in range(4)]
    assert same(drawn[0], drawn[2]) and same(drawn[1], drawn[3]) and not same(drawn[0], drawn[1])


def test_worker_processes_deliver_the_same_batches_in_the_same_order():
    expected = [next(loader) for loader in [batches(mild_intensity_augmentation(1.0))] for _ in range(5)]
    loader = start_loader(batches(mild_intensity_augmentation(1.0)), num_processes=2, pin_memory=False)
    try:
        assert all(same(next(loader), batch) for batch in expected)
    finally:
        loader._finish()


def test_workers_are_there_before_the_first_batch_and_hand_over_whole_batches():
    """Forked together at the start, before anything runs on a GPU; tensors are pinned through a dict of fields."""
    expected = next(batches())
    loader = start_loader(batches(), num_processes=1, pin_memory=True)
    try:
        assert [process.is_alive() for process in loader._processes] == [True]
        batch = next(loader)
        assert type(batch) is AliceBatch and same(batch, expected) and batch.cases == expected.cases == ["a", "b"]
        assert [pair.score for pair in batch.pairs] == [pair.score for pair in expected.pairs]
    finally:
        loader._finish()


def test_a_batch_moves_its_tensors_and_keeps_the_rest():
    batch = next(batches())
    moved = batch.to("meta")
    assert moved.views.device.type == moved.mask.device.type == "meta" and moved.views.shape == batch.views.shape
    assert moved.pairs is batch.pairs and moved.cases == batch.cases and batch.views.device.type == "cpu"


@pytest.mark.slow
def test_workers_of_a_process_that_computes_with_several_threads_do_not_hang():
    script = """
import torch
from test_loader import batches, mild_intensity_augmentation, start_loader
torch.set_num_threads(2)
torch.nn.functional.conv3d(torch.randn(2, 8, 32, 32, 32), torch.randn(8, 8, 3, 3, 3)).sum()
torch.zeros(100000).index_add_(0, torch.arange(100000), torch.ones(100000))
loader = start_loader(batches(mild_intensity_augmentation(1.0)), num_processes=1, pin_memory=False)
print(sum(1 for _ in range(3) if next(loader) is not None))
loader._finish()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script]
    delivered = subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True, text=True)
    assert delivered.stdout.split()[-1] == "3"


def test_augmentation_is_mild_repeatable_and_leaves_global_randomness_alone():
    view = volumes()["a"]
    transform = mild_intensity_augmentation(1.0)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, two, other = (augmented([view.copy()], transform, np.random.default_rng(seed))[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(one, two) and not torch.equal(one, other)
    correlation = np.corrcoef(one.numpy().ravel(), view.ravel())[0, 1]
    assert 0.8 < correlation < 1 - 1e-6


def test_views_of_a_batch_are_augmented_as_one_by_one():
    """The global generators are put back once a batch. What is drawn is the same: begun runs go on as they were."""
    transform, image = mild_intensity_augmentation(0.5), volumes()["a"]
    rng = np.random.default_rng(5)
    singly = [augmented([image.copy()], transform, rng)[0] for _ in range(6)]
    assert torch.equal(
        augmented((image.copy() for _ in range(6)), transform, np.random.default_rng(5)), torch.stack(singly)
    )
    assert torch.equal(augmented([image, image], None, rng), torch.from_numpy(np.stack([image, image])))


def test_the_global_generators_are_put_back_once_a_batch(monkeypatch):
    """That takes a tenth of a millisecond, as long as the transforms of a small crop."""
    restored, image = [], volumes()["a"]
    monkeypatch.setattr("numpy.random.set_state", restored.append)
    augmented((image.copy() for _ in range(6)), mild_intensity_augmentation(), np.random.default_rng(5))
    assert len(restored) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_batch_is_not_swallowed(workers):
    def broken(number, rng):
        raise RuntimeError("no such voxel")

    loader = start_loader(NumberedBatches(broken, seed=0), workers, False)
    with pytest.raises(RuntimeError):
        next(loader)
