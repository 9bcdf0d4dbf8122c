"""Weights of classes against a naive recount."""

import numpy as np
import pytest

from nnunet_alice.finetuning.class_weights import count_voxels, rarity


def test_voxels_are_counted_class_by_class():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-1, 5, (1, 4, 5, 6), dtype=np.int16) for _ in range(3)]  # 4 is the ignore label
    expected = [sum(int((np.maximum(a, 0) == value).sum()) for a in arrays) for value in range(4)]
    assert count_voxels(iter(arrays), 4).tolist() == expected


def test_weights_fall_with_the_root_of_the_share_and_are_1_on_average():
    counts = np.array([900_000, 90_000, 10_000])
    weights = rarity(counts)
    assert weights @ counts / counts.sum() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(np.sqrt(10), rel=1e-2)
    assert weights[2] / weights[1] == pytest.approx(3, rel=1e-2)
    assert weights.dtype == np.float32


@pytest.mark.parametrize("counts", [[10, 0], [0, 0], [1]])
def test_absent_classes_stay_finite(counts):
    assert np.isfinite(rarity(counts)).all()
