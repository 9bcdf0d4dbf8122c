"""A queue of keys for each landmark: the negatives of DrasCLR are other subjects at the same place."""

import torch
from torch import Tensor, nn

#: Bytes of a subject number and, per landmark, of pointer and fill count.
_SUBJECT_BYTES, _COUNTER_BYTES = 4, 16


def queue_size(num_subjects: int, limit: int = 4096) -> int:
    """Keys a landmark K: one for each subject, at most ``limit`` (the reference's 4096).

    More slots than subjects would hold older keys of the same subjects, computed by an older encoder.

    Args:
        num_subjects: subjects of the training set.
        limit: upper bound.

    Raises:
        ValueError: an argument is not positive.
    """
    if num_subjects < 1 or limit < 1:
        raise ValueError(f"num_subjects and limit must be positive, got {num_subjects} and {limit}.")
    return min(num_subjects, limit)


def queue_bytes(num_landmarks: int, size: int, dim: int = 128) -> int:
    """Memory of `LandmarkQueues` in bytes, subject numbers and counters included."""
    return num_landmarks * (size * (2 * dim + _SUBJECT_BYTES) + _COUNTER_BYTES)


class LandmarkQueues(nn.Module):
    """Ring buffers of keys, one for each landmark; only slots that hold a key are ever given out.

    Half precision is enough for unit vectors: components are below 1 in size, so a cosine is off by about 1e-4.
    Which subject a key came from is kept beside it: an own older key, at the same landmark, is no negative. (The
    reference does not look; with few subjects it pushes every second view away from itself.)

    Everything is in buffers, thus in the ``state_dict``. `DrasCLRModel` keeps DDP from broadcasting them each step.

    Args:
        num_landmarks: L.
        size: K, slots of each landmark; see `queue_size`.
        dim: D, width of a key.

    Attributes:
        keys: (L, K, D) float16.
        subjects: (L, K) int32, number of the subject of each key, -1 where unknown.
        pointers: (L,) int64, the slot that the next key goes to.
        filled: (L,) int64, number of slots that hold a key.

    Raises:
        ValueError: an argument is not positive.
    """

    keys: Tensor
    subjects: Tensor
    pointers: Tensor
    filled: Tensor

    def __init__(self, num_landmarks: int, size: int, dim: int = 128) -> None:
        super().__init__()
        if min(num_landmarks, size, dim) < 1:
            raise ValueError(f"Queues need positive sizes, got {num_landmarks} landmarks, {size} slots, width {dim}.")
        self.register_buffer("keys", torch.zeros(num_landmarks, size, dim, dtype=torch.float16))
        self.register_buffer("subjects", torch.full((num_landmarks, size), -1, dtype=torch.int32))
        self.register_buffer("pointers", torch.zeros(num_landmarks, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(num_landmarks, dtype=torch.int64))

    @property
    def num_landmarks(self) -> int:
        """L, the number of queues."""
        return self.keys.shape[0]

    @property
    def size(self) -> int:
        """K, the slots of a queue."""
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def fill_fraction(self) -> Tensor:
        """Share of all slots that hold a key, scalar in [0, 1]."""
        return self.filled.sum() / (self.num_landmarks * self.size)

    @torch.no_grad()
    def enqueue(self, landmark: int, keys: Tensor, subjects: Tensor | None = None) -> None:
        """Put keys into the queue of a landmark, in order; the oldest make room. Of more than K keys the last K stay.

        Args:
            landmark: in [0, L).
            keys: (n, D) L2-normalised.
            subjects: (n,) integers >= 0, subject of each key; None if unknown.

        Raises:
            IndexError: no such landmark.
            ValueError: shapes do not fit.
        """
        self._check_landmark(landmark)
        if keys.ndim != 2 or keys.shape[1] != self.keys.shape[2]:
            raise ValueError(f"keys must be (n, {self.keys.shape[2]}), got {tuple(keys.shape)}.")
        if subjects is not None and subjects.shape != keys.shape[:1]:
            raise ValueError(f"subjects must be ({keys.shape[0]},), got {tuple(subjects.shape)}.")
        keys = keys[-self.size :]
        count = keys.shape[0]
        if count == 0:
            return
        slots = (self.pointers[landmark] + torch.arange(count, device=self.keys.device)) % self.size
        self.keys[landmark, slots] = keys.to(self.keys.device, self.keys.dtype)
        self.subjects[landmark, slots] = subjects[-count:].to(self.subjects) if subjects is not None else -1
        self.pointers[landmark] = (self.pointers[landmark] + count) % self.size
        self.filled[landmark] = torch.clamp(self.filled[landmark] + count, max=self.size)

    def negatives(self, landmark: int) -> Tensor:
        """Keys in the queue of a landmark: (n, D) float16, n <= K, a view, in the order of the slots.

        Raises:
            IndexError: no such landmark.
        """
        self._check_landmark(landmark)
        return self.keys[landmark, : int(self.filled[landmark])]

    def negative_subjects(self, landmark: int) -> Tensor:
        """Subject of each key that `negatives` gives: (n,) int32, -1 where unknown."""
        self._check_landmark(landmark)
        return self.subjects[landmark, : int(self.filled[landmark])]

    def _check_landmark(self, landmark: int) -> None:
        if not 0 <= landmark < self.num_landmarks:
            raise IndexError(f"There is no landmark {landmark}; the queues have {self.num_landmarks}.")
