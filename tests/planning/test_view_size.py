"""Views are smaller than volumes, or all of them would look alike."""

from math import prod

import numpy as np
import pytest

from nnunet_alice.planning.plans import view_size


def pooled(*totals):
    """Strides of stages that halve every axis until its total stride is reached."""
    stages = [[1] * len(totals)]
    while any(prod(stage[axis] for stage in stages) < total for axis, total in enumerate(totals)):
        done = [prod(stage[axis] for stage in stages) for axis in range(len(totals))]
        stages.append([2 if reached < total else 1 for reached, total in zip(done, totals, strict=True)])
    return stages


@pytest.mark.parametrize(
    "patch, volume, strides, expected",
    [
        # MSD Task04: the patch is larger than the volumes
        ((40, 56, 40), (35, 50, 35), (8, 8, 8), (24, 32, 24)),
        # abdominal CT, MSD liver and BTCV: nothing changes
        ((128, 128, 128), (482, 512, 512), (32, 32, 32), (128, 128, 128)),
        ((48, 192, 192), (148, 512, 512), (8, 32, 32), (48, 192, 192)),
        # MSD prostate: few thick slices stay thin, and no axis loses its bottleneck
        ((16, 320, 256), (20, 320, 319), (4, 64, 64), (12, 192, 192)),
        ((4, 64, 64), (5, 70, 70), (1, 32, 32), (3, 64, 64)),
        ((8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 8, 8)),
    ],
)
def test_views_of_known_datasets(patch, volume, strides, expected):
    assert view_size(patch, volume, pooled(*strides)) == expected


def test_every_axis_fits_the_network_and_shrinks_only_where_it_must():
    rng = np.random.default_rng(0)
    for _ in range(300):
        totals = 2 ** rng.integers(0, 6, 3)
        patch = totals * rng.integers(2, 20, 3)
        volume = patch * rng.uniform(0.3, 4, 3)
        view = np.array(view_size(patch, volume, pooled(*totals)))
        shown = patch <= volume * 2 / 3
        assert np.array_equal(view[shown], patch[shown])
        assert np.all(view % totals == 0) and np.all(view <= patch)
        assert np.all((view >= 2 * totals) | (totals == 1))
        free = ~shown & (view > 2 * totals)
        assert np.all(np.abs(view - volume * 2 / 3)[free] <= totals[free] / 2)
