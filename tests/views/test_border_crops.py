"""Crops that may reach beyond the volume."""

import numpy as np

from nnunet_alice.views.border_crops import crop_with_border, crops_with_border


def test_border_is_repeated_beyond_the_volume():
    image = np.random.default_rng(0).normal(size=(2, 6, 7, 5)).astype(np.float32)
    padded = np.pad(image, [(0, 0)] + [(20, 20)] * 3, mode="edge")
    for centre in ((3, 3, 2), (0, 0, 0), (5.4, -0.5, 4.4), (-9, 3, 14), (2.5, 12, 1.5)):
        for size in ((4, 4, 4), (8, 9, 3), (3, 12, 12)):
            lower = np.floor(np.asarray(centre) + 0.5).astype(int) - np.asarray(size) // 2 + 20
            expected = padded[(slice(None), *(slice(a, a + n) for a, n in zip(lower, size, strict=True)))]
            np.testing.assert_array_equal(crop_with_border(image, centre, size), expected)


def test_several_crops_are_those_read_one_by_one_and_near_ones_are_read_at_once():
    class Counted:
        """An image that counts the voxels read of it."""

        def __init__(self, image):
            self.image, self.shape, self.read = image, image.shape, 0

        def __getitem__(self, key):
            self.read += self.image[key].size
            return self.image[key]

    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 30, 31, 29)).astype(np.float32)
    saved = 0
    for _ in range(200):
        near = rng.uniform(-12, 42, 3) + rng.normal(0, rng.choice([1, 12]), (3, 3))
        size = tuple(rng.integers(3, 14, 3).tolist())
        once, single = Counted(image), Counted(image)
        found = crops_with_border(once, list(near), size)
        for crop, point in zip(found, near, strict=True):
            np.testing.assert_array_equal(crop, crop_with_border(single, point, size))
        assert once.read <= single.read
        saved += once.read < single.read
    assert 50 < saved < 150
