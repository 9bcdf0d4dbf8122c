"""The ring of keys: order, one key a subject and landmark, ages, and never an empty slot."""

import pytest
import torch

from nnunet_alice.methods.drasclr.queue import KeyQueue


def keys_of(numbers, dim=4):
    """Recognisable keys, exact in half precision."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, dim)


def content(queue, landmark):
    """(subject, key, age) of every key of a landmark, by subject."""
    seen = queue.seen_from(landmark)
    rows = zip(seen.subjects[seen.here], seen.keys[seen.here, 0], seen.ages[seen.here], strict=True)
    return sorted((int(subject), float(key), int(age)) for subject, key, age in rows)


def test_ages_and_numbers_are_those_of_a_naive_simulation():
    """A list of everything that came, of which the newest K count, and of these the newest of each subject."""
    size, rng = 12, torch.Generator().manual_seed(0)
    queue, history, number = KeyQueue(size, dim=4), [], 0
    for step in range(80):
        landmark = int(torch.randint(3, (), generator=rng))
        subjects = torch.randint(9, (int(torch.randint(1, 6, (), generator=rng)),), generator=rng)
        numbers = list(range(number, number + len(subjects)))
        number += len(subjects)
        queue.enqueue(keys_of(numbers), torch.full_like(subjects, landmark), subjects)
        history += [(landmark, int(s), float(n), step) for s, n in zip(subjects, numbers, strict=True)]
        for other in range(3):
            newest = {s: (n, made) for place, s, n, made in history[-size:] if place == other}
            assert content(queue, other) == sorted((s, n, step + 1 - made) for s, (n, made) in newest.items())


def test_a_landmark_has_one_key_a_subject():
    queue = KeyQueue(6, dim=4)
    queue.enqueue(keys_of([1, 2]), torch.tensor([5, 5]), torch.tensor([0, 1]))
    queue.enqueue(keys_of([3, 4, 5]), torch.tensor([5, 6, 5]), torch.tensor([1, 1, 1]))
    assert content(queue, 5) == [(0, 1, 2), (1, 5, 1)]
    assert content(queue, 6) == [(1, 4, 1)]


def test_empty_slots_are_never_given_out_and_the_last_of_too_many_stay():
    queue = KeyQueue(4, dim=4)
    assert content(queue, 0) == [] and content(queue, -1) != []  # -1 marks them
    queue.enqueue(keys_of([1, 2, 3, 4, 5, 6]), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    assert [key for _, key, _ in content(queue, 0)] == [3, 4, 5, 6]


def test_state_dict_resumes_to_the_bit():
    queue, twin = KeyQueue(4, dim=4), KeyQueue(4, dim=4)
    queue.enqueue(torch.randn(6, 4), torch.ones(6, dtype=torch.int64), torch.arange(6))
    twin.load_state_dict(queue.state_dict())
    for both in (queue, twin):
        both.enqueue(keys_of([7, 8, 9]), torch.tensor([1, 1, 1]), torch.tensor([3, 8, 9]))
    assert set(queue.state_dict()) == {"keys", "landmarks", "subjects", "made", "pointer", "step"}
    for name, value in queue.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_half_precision_and_no_gradient():
    queue = KeyQueue(8, dim=128)
    keys = torch.nn.functional.normalize(torch.randn(8, 128), dim=1).requires_grad_()
    queue.enqueue(keys, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    stored = queue.seen_from(0).keys
    assert stored.dtype == torch.float16 and not stored.requires_grad
    cosine = (stored.float() * keys.detach()).sum(dim=1)
    torch.testing.assert_close(cosine, torch.ones(8), atol=1e-3, rtol=0)


def test_bad_input():
    queue = KeyQueue(4, dim=4)
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^keys"):
        queue.enqueue(torch.zeros(1, 5), one, one)
    with pytest.raises(ValueError, match=r"(?i)^landmarks and subjects"):
        queue.enqueue(keys_of([1, 2]), one, one)
    with pytest.raises(ValueError):
        KeyQueue(0, 4)
