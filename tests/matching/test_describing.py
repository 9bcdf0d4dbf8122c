"""Descriptors by sliding windows, against one window and against a field whose values are known."""

import numpy as np
import pytest
import torch
from support.tiny_networks import tiny_unet
from torch import nn

from nnunet_alice.matching import describing
from nnunet_alice.matching.describing import Describer, window_starts
from nnunet_alice.methods.embedding.heads import Descriptors
from nnunet_alice.methods.embedding.model import EmbeddingNetwork
from nnunet_alice.methods.embedding.positions import feature_affine, sample_map


@pytest.mark.parametrize(("size", "window"), [(40, 16), (41, 16), (17, 16), (100, 7), (16, 16)])
def test_windows_cover_an_axis_and_overlap_by_half(size, window):
    starts = window_starts(size, window)
    covered = np.zeros(size, dtype=bool)
    for start in starts:
        assert 0 <= start <= size - window
        covered[start : start + window] = True
    assert covered.all()
    assert np.all(np.diff(starts) > 0) and np.all(np.diff(starts) <= window // 2 + 1)


def test_a_small_volume_lies_in_the_middle_of_its_window():
    assert window_starts(10, 16) == [-3]


class BlockMeans(nn.Module):
    """Stands for a trained network: its descriptors are the means of the image over blocks, at two strides."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Module()
        self.heads.fine = nn.Conv3d(1, 3, 1)
        self.heads.fine_stride, self.heads.coarse_stride = (1, 2, 2), (2, 4, 4)
        self.seen = 0

    def forward(self, crops):
        self.seen += len(crops)
        means = (nn.functional.avg_pool3d(crops, s) for s in (self.heads.coarse_stride, self.heads.fine_stride))
        return Descriptors(*(nn.functional.normalize(mean, dim=1) for mean in means))


def smooth_image(shape) -> np.ndarray:
    """(3, *shape) image that turns slowly, of length 1 everywhere, so that block means know their place."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    one, two = 0.02 * z + 0.015 * y, 0.5 + 0.012 * x
    image = np.stack([np.cos(one) * np.cos(two), np.sin(one) * np.cos(two), np.sin(two)])
    return image.astype(np.float32)


@pytest.mark.parametrize("voxels_a_pass", [1, 10**9])
def test_windows_give_the_value_at_the_point_wherever_it_lies(monkeypatch, voxels_a_pass):
    monkeypatch.setattr(describing, "_VOXELS_A_PASS", voxels_a_pass)
    shape = (14, 40, 29)
    image = smooth_image(shape)
    inner = np.random.default_rng(0).uniform([3, 5, 5], np.array(shape) - [4, 6, 6], (200, 3))
    fine, coarse = Describer(BlockMeans(), (8, 16, 16), torch.device("cpu")).describe(image, inner)
    z, y, x = inner.T
    one, two = 0.02 * z + 0.015 * y, 0.5 + 0.012 * x
    truth = np.stack([np.cos(one) * np.cos(two), np.sin(one) * np.cos(two), np.sin(two)], axis=1)
    np.testing.assert_allclose(np.linalg.norm(fine, axis=1), 1, atol=1e-5)
    # half a voxel of this image is an angle of 0.01; coarse maps reach only to the middle of their outermost voxels
    assert np.abs(fine - truth).max() < 0.004
    assert np.median(np.abs(coarse - truth)) < 0.004


def test_one_window_is_the_network_itself():
    torch.manual_seed(0)
    network = EmbeddingNetwork(tiny_unet(), dimension=6)
    image = np.random.default_rng(1).normal(size=(1, 16, 16, 16)).astype(np.float32)
    points = np.random.default_rng(2).uniform(0, 15, (20, 3))
    fine, coarse = Describer(network, (16, 16, 16), torch.device("cpu")).describe(image, points)
    with torch.no_grad():
        maps = network.eval()(torch.from_numpy(image)[None])
    for found, values, stride in ((fine, maps.fine, (2, 2, 2)), (coarse, maps.coarse, (4, 4, 4))):
        expected = sample_map(
            values, feature_affine(torch.eye(4)[None], stride), torch.from_numpy(points).float()[None]
        )
        np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-5)


def test_windows_without_a_point_are_not_computed():
    network = BlockMeans()
    describer = Describer(network, (8, 16, 16), torch.device("cpu"))
    describer.describe(smooth_image((40, 80, 80)), np.array([[1.0, 1.0, 1.0]]))
    assert network.seen == 1
    fine, coarse = describer.describe(smooth_image((40, 80, 80)), np.empty((0, 3)))
    assert fine.shape == coarse.shape == (0, 3) and network.seen == 1
