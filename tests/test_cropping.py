"""Crops are centred where they should be, at borders too."""

import numpy as np
import pytest

from nnunet_alice.cropping import crop_centred, share_inside


@pytest.mark.slow
@pytest.mark.parametrize("centre", [(5, 6, 7), (0, 0, 0), (9, 11, 13), (2.4, 8.6, 12.5), (-3, 5, 20)])
@pytest.mark.parametrize("patch", [(4, 6, 8), (5, 7, 3), (16, 24, 32)])
def test_every_voxel_is_where_a_loop_puts_it(centre, patch):
    image = np.random.default_rng(0).normal(size=(2, 10, 12, 14)).astype(np.float32)
    crop = crop_centred(image, centre, patch)
    middle = [int(np.floor(c + 0.5)) for c in centre]
    for index in np.ndindex(*patch):
        source = tuple(m - p // 2 + i for m, p, i in zip(middle, patch, index, strict=True))
        inside = all(0 <= s < n for s, n in zip(source, image.shape[1:], strict=True))
        expected = image[(slice(None), *source)] if inside else np.zeros(2)
        np.testing.assert_array_equal(crop[(slice(None), *index)], expected)


def test_share_inside_counts_voxels():
    shape, patch = (20, 9, 30), (8, 12, 10)
    points = np.array([[10, 4.5, 15], [0, 4, 0], [19, 8, 29], [-10, 0, 0], [3.5, 4.4, 2.6]])
    ones = np.ones((1, *shape), dtype=np.float32)
    best = np.prod(np.minimum(shape, patch))
    counted = [crop_centred(ones, point, patch).sum() / best for point in points]
    np.testing.assert_allclose(share_inside(points, shape, patch), counted)
    assert share_inside(points, shape, patch)[0] == 1
