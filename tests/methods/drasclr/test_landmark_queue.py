"""Queues of keys: order, wrap-around, isolation, and never an empty slot."""

from collections import deque

import pytest
import torch

from nnunet_alice.methods.drasclr.queue import LandmarkQueues, queue_bytes, queue_size


def keys_of(*numbers, dim=4):
    """Recognisable keys, exact in half precision."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, dim)


def content(queues, landmark):
    """Numbers in the queue, oldest first."""
    negatives = queues.negatives(landmark)
    start = int(queues.pointers[landmark]) if len(negatives) == queues.size else 0
    return torch.roll(negatives[:, 0], -start).tolist()


def test_keys_leave_in_the_order_they_came_and_landmarks_do_not_mix():
    queues = LandmarkQueues(3, size=5, dim=4)
    mirror = [deque(maxlen=5) for _ in range(3)]
    rng = torch.Generator().manual_seed(0)
    number = 0
    for _ in range(60):
        landmark = int(torch.randint(3, (), generator=rng))
        count = int(torch.randint(8, (), generator=rng))
        numbers = list(range(number, number + count))
        number += count
        queues.enqueue(landmark, keys_of(*numbers), torch.tensor(numbers, dtype=torch.int64))
        mirror[landmark].extend(numbers)
        for other in range(3):
            assert content(queues, other) == [float(n) for n in mirror[other]]
            assert queues.negative_subjects(other).tolist() == queues.negatives(other)[:, 0].int().tolist()
    assert number > 100


def test_empty_slots_are_never_negatives():
    queues = LandmarkQueues(2, size=4, dim=4)
    assert queues.negatives(0).shape == (0, 4)
    queues.enqueue(0, keys_of(1, 2, 3))
    assert queues.negatives(0)[:, 0].tolist() == [1, 2, 3]
    assert queues.negative_subjects(0).tolist() == [-1, -1, -1]
    assert queues.negatives(1).shape == (0, 4)
    assert float(queues.fill_fraction()) == pytest.approx(3 / 8)


def test_wrap_around_at_the_exact_end():
    queues = LandmarkQueues(1, size=4, dim=4)
    queues.enqueue(0, keys_of(1, 2, 3, 4))
    assert int(queues.pointers[0]) == 0 and int(queues.filled[0]) == 4
    queues.enqueue(0, keys_of(5))
    assert queues.negatives(0)[:, 0].tolist() == [5, 2, 3, 4]


def test_state_dict_resumes_to_the_bit():
    queues = LandmarkQueues(2, size=4, dim=4)
    queues.enqueue(1, torch.randn(6, 4), torch.arange(6))
    twin = LandmarkQueues(2, size=4, dim=4)
    twin.load_state_dict(queues.state_dict())
    for both in (queues, twin):
        both.enqueue(1, keys_of(7, 8, 9), torch.tensor([7, 8, 9]))
    assert set(queues.state_dict()) == {"keys", "subjects", "pointers", "filled"}
    for name, value in queues.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)


def test_half_precision_and_no_gradient():
    queues = LandmarkQueues(1, size=8, dim=128)
    keys = torch.nn.functional.normalize(torch.randn(8, 128), dim=1).requires_grad_()
    queues.enqueue(0, keys)
    stored = queues.negatives(0)
    assert stored.dtype == torch.float16 and not stored.requires_grad
    cosine = (stored.float() * keys.detach()).sum(dim=1)
    torch.testing.assert_close(cosine, torch.ones(8), atol=1e-3, rtol=0)


def test_memory_is_as_computed_and_within_bounds():
    small = LandmarkQueues(7, size=5, dim=128)
    assert queue_bytes(7, 5, 128) == small.nbytes
    size = queue_size(10_000)
    assert size == 4096
    assert queue_bytes(581, size) <= 0.7e9
    assert queue_size(40) == 40


def test_bad_input():
    queues = LandmarkQueues(2, size=4, dim=4)
    with pytest.raises(IndexError, match="no landmark 2"):
        queues.enqueue(2, keys_of(1))
    with pytest.raises(IndexError, match="no landmark -1"):
        queues.negatives(-1)
    with pytest.raises(ValueError, match=r"must be \(n, 4\)"):
        queues.enqueue(0, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="subjects"):
        queues.enqueue(0, keys_of(1, 2), torch.tensor([1]))
    with pytest.raises(ValueError, match="positive sizes"):
        LandmarkQueues(0, 4)
    with pytest.raises(ValueError, match="must be positive"):
        queue_size(0)
