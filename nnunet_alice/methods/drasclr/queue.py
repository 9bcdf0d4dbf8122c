"""The newest keys of all landmarks in one ring: the negatives of DrasCLR are other subjects at the same place.

The reference holds a queue for each landmark. What lies in it when a landmark is visited again was made a whole round
ago, by an encoder that has changed since: queries learn to tell old keys from new ones. Training stays at a landmark
for some steps (`nnunet_alice.views.landmark_crops`). So its newest keys are all that is needed, and the memory
does not grow with the landmarks.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class QueuedKeys(NamedTuple):
    """All slots of a queue, as seen from one landmark.

    Attributes:
        keys: (K, D) float16.
        subjects: (K,) int32, subject of each key.
        ages: (K,) int64, steps since the key was made; 1 for those of the step before.
        here: (K,) bool, which slots hold a key of the landmark.
    """

    keys: Tensor
    subjects: Tensor
    ages: Tensor
    here: Tensor


class KeyQueue(nn.Module):
    """Ring buffer of the newest keys, each with its landmark, subject and step.

    A landmark has one key a subject at most: a newer one takes its place. Half precision is enough for unit vectors:
    components are below 1 in size, so a cosine is off by about 1e-4. No call waits for the device.

    Everything is in buffers, thus in the ``state_dict``.

    Args:
        size: K, number of slots; as many as there are subjects hold every subject once.
        dim: D, width of a key.

    Attributes:
        keys: (K, D) float16.
        landmarks: (K,) int32, landmark of each key, -1 for an empty slot.
        subjects: (K,) int32.
        made: (K,) int64, number of the step that made each key.
        pointer: scalar int64, the slot that the next key goes to.
        step: scalar int64, steps so far.

    Raises:
        ValueError: an argument is not positive.
    """

    keys: Tensor
    landmarks: Tensor
    subjects: Tensor
    made: Tensor
    pointer: Tensor
    step: Tensor

    def __init__(self, size: int, dim: int = 128) -> None:
        super().__init__()
        if min(size, dim) < 1:
            raise ValueError(f"A queue needs positive sizes, got {size} slots of width {dim}.")
        self.register_buffer("keys", torch.zeros(size, dim, dtype=torch.float16))
        self.register_buffer("landmarks", torch.full((size,), -1, dtype=torch.int32))
        self.register_buffer("subjects", torch.full((size,), -1, dtype=torch.int32))
        self.register_buffer("made", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        """K, the number of slots."""
        return self.keys.shape[0]

    def seen_from(self, landmark: int) -> QueuedKeys:
        """Return all slots, and which of them hold a key of a landmark."""
        return QueuedKeys(self.keys, self.subjects, self.step - self.made, self.landmarks == landmark)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, landmarks: Tensor, subjects: Tensor) -> None:
        """Put the keys of one step into the ring, in order; the oldest make room. Of more than K keys the last K stay.

        Args:
            keys: (n, D) L2-normalised.
            landmarks: (n,) integers >= 0, landmark of each key.
            subjects: (n,) integers >= 0, subject of each key.

        Raises:
            ValueError: shapes do not fit.
        """
        if keys.ndim != 2 or keys.shape[1] != self.keys.shape[1]:
            raise ValueError(f"keys must be (n, {self.keys.shape[1]}), got {tuple(keys.shape)}.")
        if not landmarks.shape == subjects.shape == keys.shape[:1]:
            raise ValueError(
                f"Landmarks and subjects must be ({keys.shape[0]},), got {tuple(landmarks.shape)}, "
                f"{tuple(subjects.shape)}."
            )
        keys = keys[-self.size :].to(self.keys)
        landmarks, subjects = (x[-self.size :].to(self.landmarks) for x in (landmarks, subjects))
        count = keys.shape[0]
        self._forget(landmarks, subjects)
        slots = (self.pointer + torch.arange(count, device=self.keys.device)) % self.size
        repeated = _same(landmarks, subjects, landmarks, subjects).triu(1).any(dim=1)  # the last one counts
        self.keys[slots] = keys
        self.landmarks[slots] = landmarks.masked_fill(repeated, -1)
        self.subjects[slots] = subjects
        self.made[slots] = self.step
        self.pointer.copy_((self.pointer + count) % self.size)
        self.step += 1

    def _forget(self, landmarks: Tensor, subjects: Tensor) -> None:
        """Empty the slots whose subject has a newer key at their landmark."""
        renewed = _same(self.landmarks, self.subjects, landmarks, subjects).any(dim=1)
        self.landmarks.masked_fill_(renewed, -1)


def _same(landmarks: Tensor, subjects: Tensor, other_landmarks: Tensor, other_subjects: Tensor) -> Tensor:
    """Return which keys (n,) are of the landmark and subject of which others (m,): bool (n, m)."""
    return (landmarks[:, None] == other_landmarks) & (subjects[:, None] == other_subjects)
