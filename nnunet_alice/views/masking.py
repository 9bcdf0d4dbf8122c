"""Block masks: which part of a view the student does not see (Alice, section 3.2)."""

from collections.abc import Sequence

import numpy as np

MAX_BLOCK_VOX = 16
MIN_BLOCKS = 4


def block_shape(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a mask's blocks: up to 16 voxels an axis, but at least 4 blocks along every axis.

    64 -> 16 as in the reference; small patches get smaller blocks. Of the sizes that fit, the largest divisor of the
    axis is taken when it is more than half of the largest size. So all blocks are whole; otherwise the largest
    size, and the last block is cut. An axis shorter than 4 voxels has blocks of one voxel.

    Args:
        patch_size: Shape of the view in voxels, (z, y, x).

    Returns:
        Block shape in voxels, one number for each axis.

    Raises:
        ValueError: If an axis is empty.
    """
    if min(patch_size) < 1:
        raise ValueError(f"patch_size must be positive, got {tuple(patch_size)}.")
    return tuple(_block_length(int(length)) for length in patch_size)


def _block_length(length: int) -> int:
    largest = max(1, min(MAX_BLOCK_VOX, length // MIN_BLOCKS))
    for candidate in range(largest, largest // 2, -1):
        if length % candidate == 0:
            return candidate
    return largest


def block_mask(patch_size: Sequence[int], block: Sequence[int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Draw which blocks of a view are masked: exactly ``round(ratio * number of blocks)`` of them.

    Blocks are drawn in all axes. The reference draws a 2D grid and repeats it along the third axis, so that whole
    columns are missing.

    Args:
        patch_size: Shape of the view in voxels, (z, y, x).
        block: Shape of a block in voxels, see `block_shape`; a block at the end of an axis that does not fit is cut.
        ratio: Share of blocks to mask, in [0, 1].
        rng: Source of randomness; every call draws a fresh mask.

    Returns:
        Bool array of shape ``patch_size``, True where masked.

    Raises:
        ValueError: If the lengths of ``patch_size`` and ``block`` differ, one of them is not positive or the ratio is
            outside [0, 1].
    """
    if len(patch_size) != len(block) or min(*patch_size, *block) < 1:
        raise ValueError(
            f"patch_size and block must be positive and of the same length, got {tuple(patch_size)} and {tuple(block)}."
        )
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}.")
    grid = tuple(-(-length // edge) for length, edge in zip(patch_size, block, strict=True))
    blocks = np.zeros(int(np.prod(grid)), dtype=bool)
    blocks[: round(ratio * blocks.size)] = True
    mask = rng.permutation(blocks).reshape(grid)
    for axis, edge in enumerate(block):
        mask = mask.repeat(edge, axis=axis)
    # A copy where blocks were cut, so that the mask is contiguous and does not keep the larger array alive.
    return np.ascontiguousarray(mask[tuple(slice(length) for length in patch_size)])
