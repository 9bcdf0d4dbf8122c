"""Regions of the atlas: a partition of its body, and the right one at every point of a registered case."""

import numpy as np
import pytest

from nnunet_alice.anatomy.deformation import Deformation
from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.anatomy.regions import lay_regions

SPACING = (4.0, 4.0, 4.0)
#: points move by as much, wherever they are: 3.25 mm along y
SHIFT = Deformation(np.array([0, 3.25, 0], np.float16)[:, None, None, None], (0.0, 0.0, 0.0), SPACING)


def body(shape=(40, 36, 32), seed=0, spacing=SPACING):
    """A soft ball with two inner halves in air."""
    z, y, x = (
        np.linspace(-1, 1, n)[tuple(None if a != i else slice(None) for a in range(3))] for i, n in enumerate(shape)
    )
    inside = z**2 + y**2 + x**2 < 0.8
    noise = np.random.default_rng(seed).normal(0, 0.05, shape)
    image = np.where(inside, np.where(x > 0, 1.0, 2.0) + noise, -3.0)
    return compute_geometry("ball", image[None].astype(np.float32), spacing)


def test_regions_cut_the_body_and_nothing_else():
    atlas = body()
    regions = lay_regions(atlas, 20)
    present = np.unique(regions.labels)
    assert present[0] == 0 and 10 <= len(present) - 1 <= 20
    np.testing.assert_array_equal(regions.labels > 0, atlas.body)
    np.testing.assert_array_equal(lay_regions(atlas, 20).labels, regions.labels)


def test_regions_follow_a_strong_border():
    atlas = body()
    labels = lay_regions(atlas, 20).labels
    right = np.broadcast_to(np.arange(labels.shape[2]) >= labels.shape[2] // 2, labels.shape)
    purity = [max(right[labels == n].mean(), 1 - right[labels == n].mean()) for n in np.unique(labels)[1:]]
    assert np.mean(purity) > 0.95


def test_small_bodies_get_fewer_regions():
    assert lay_regions(body((12, 12, 12)), 10_000).labels.max() < 12**3 / 8


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
def test_a_point_has_the_region_of_its_place_in_the_atlas(step):
    atlas = body()
    regions = lay_regions(atlas, 20)
    # the case: the same ball, twice as fine, seen 8 mm further along z
    case = body((80, 72, 64), spacing=(2.0, 2.0, 2.0))
    affine = np.eye(4)
    affine[:3, 3] = (1.0, 1.0, 1.0)
    first, size = (10, 12, 8), (15, 12, 14)
    voxels = np.moveaxis(np.indices(size), 0, -1) * step + first
    found = regions.at(voxels * 2.0, affine, SHIFT, case)
    for index in np.ndindex(*size):
        voxel = voxels[index]
        cell = np.round((voxel * 2.0 + (1, 4.25, 1) - regions.grid_origin_mm) / regions.grid_spacing_mm).astype(int)
        inside = ((cell >= 0) & (cell < regions.labels.shape)).all()
        expected = regions.labels[tuple(cell)] if inside and case.in_body(voxel[None], 0)[0] else 0
        assert found[index] == expected


def test_outside_of_the_case_nothing_is_known():
    atlas = body()
    points_mm = np.moveaxis(np.indices((8, 8, 8)), 0, -1) * 12.0 - 120
    assert not lay_regions(atlas, 20).at(points_mm, np.eye(4), SHIFT, atlas).any()
