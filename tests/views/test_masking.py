"""Block masks: sizes, exact counts, whole blocks, uniform choice."""

import numpy as np
import pytest

from nnunet_alice.views.masking import block_mask, block_shape


@pytest.mark.parametrize(
    "length, block",
    [(64, 16), (32, 8), (40, 10), (24, 6), (56, 14), (160, 16), (20, 5), (12, 3), (8, 2), (4, 1), (72, 12), (18, 3)]
    + [(88, 11), (22, 5), (13, 3), (127, 16), (3, 1), (1, 1)],
)
def test_block_of_an_axis(length, block):
    assert block_shape((length,)) == (block,)


def test_axes_are_independent_and_rules_hold_for_every_length():
    assert block_shape((20, 256, 40)) == (5, 16, 10)
    for length in range(4, 400):
        (block,) = block_shape((length,))
        assert 1 <= block <= 16
        assert -(-length // block) >= 4
        largest = min(16, length // 4)
        divisors = [d for d in range(1, largest + 1) if length % d == 0 and 2 * d > largest]
        assert block == (max(divisors) if divisors else largest)


@pytest.mark.parametrize(
    "patch, block",
    [((64, 64, 64), (16, 16, 16)), ((20, 32, 24), (5, 8, 6)), ((13, 8, 22), (3, 2, 5)), ((12, 20), (3, 5))],
)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 1.0])
def test_exactly_that_many_whole_blocks_are_masked(patch, block, ratio):
    mask = block_mask(patch, block, ratio, np.random.default_rng(0))
    assert mask.shape == patch and mask.dtype == bool and mask.flags.c_contiguous
    grid = [-(-length // edge) for length, edge in zip(patch, block, strict=True)]
    masked = 0
    for place in np.ndindex(*grid):
        cell = mask[tuple(slice(i * edge, (i + 1) * edge) for i, edge in zip(place, block, strict=True))]
        assert cell.all() or not cell.any()
        masked += bool(cell.all())
    assert masked == round(ratio * np.prod(grid))


def test_a_call_is_fresh_and_the_seed_decides():
    rng = np.random.default_rng(3)
    first, second = (block_mask((32, 32, 32), (8, 8, 8), 0.75, rng) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(block_mask((32, 32, 32), (8, 8, 8), 0.75, np.random.default_rng(3)), first)


def test_blocks_not_columns_and_every_voxel_equally_often():
    rng = np.random.default_rng(0)
    masks = np.stack([block_mask((8, 8, 8), (2, 2, 2), 0.75, rng) for _ in range(400)])
    share = masks.mean(axis=0)
    # 400 draws: standard deviation 0.022.
    assert abs(share - 0.75).max() < 0.1
    for axis in (1, 2, 3):
        uniform_columns = (masks.all(axis=axis) | ~masks.any(axis=axis)).mean()
        assert uniform_columns < 0.5


@pytest.mark.parametrize(
    "patch, block, ratio, named",
    [
        ((8, 8), (2, 2, 2), 0.5, r"\(8, 8\) and \(2, 2, 2\)"),
        ((8, 8, 8), (2, 0, 2), 0.5, r"\(2, 0, 2\)"),
        ((8, 8, 8), (2, 2, 2), 1.5, "^ratio .*1.5"),
    ],
)
def test_bad_input_is_refused(patch, block, ratio, named):
    with pytest.raises(ValueError, match=named):
        block_mask(patch, block, ratio, np.random.default_rng(0))


def test_an_empty_axis_is_refused():
    with pytest.raises(ValueError, match="patch_size"):
        block_shape((8, 0, 8))
