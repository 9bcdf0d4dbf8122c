"""Pooled features, windows of whole cases, crops for training, and occlusion."""

import numpy as np
import pandas as pd
import pytest
import torch
from support.refused import refused
from support.small_datasets import ball, set_folders, write_preprocessed
from support.tiny_networks import tiny_unet
from torch import nn

from nnunet_alice.anatomy.geometry import compute_geometry
from nnunet_alice.errors import InputError
from nnunet_alice.targets.batches import TargetCrops
from nnunet_alice.targets.definitions import TargetDefinition
from nnunet_alice.targets.network import PooledEncoder, pooled_encoder
from nnunet_alice.targets.occlusion import occlusion
from nnunet_alice.targets.tasks import Regression
from nnunet_alice.targets.windows import CasePredictor, crop_at, window_starts
from nnunet_alice.views.readings import UnreadableCaseError

SPACING = (1.0, 1.0, 1.0)
AGE = TargetDefinition("age", "regression", ("age",))


def geometry_of(image):
    return compute_geometry("case", image, SPACING)


def in_a_corner(shape, radius=9.0):
    """A ball in the first corner of a larger volume, (1, *shape)."""
    image = np.full((1, *shape), -2.0, dtype=np.float32)
    image[:, :24, :24, :24] = ball((24, 24, 24), SPACING, radius)[..., : shape[2]]
    return image


@pytest.mark.parametrize("family", ["plain", "residual"])
def test_features_are_means_and_deviations_of_the_last_stages(family):
    torch.manual_seed(0)
    unet = tiny_unet(family)
    network = pooled_encoder(unet, 2, stages=2, dropout=0.0)
    crops = torch.randn(3, 1, 16, 16, 16)
    stages = unet.encoder(crops)
    found = network.features(crops)
    assert found.shape == (3, network.width) == (3, 2 * (8 + 12))
    torch.testing.assert_close(found[1, :8], stages[-2][1].mean(dim=(1, 2, 3)))
    torch.testing.assert_close(found[1, 28:], stages[-1][1].flatten(1).std(dim=1, correction=0))
    assert network(crops).shape == (3, 2)
    assert not any(name.startswith("decoder") for name in network.state_dict())
    assert {n for n in network.state_dict() if n.startswith("encoder.")} == {
        n for n in unet.state_dict() if n.startswith("encoder.")
    }


def test_a_constant_crop_has_finite_gradients():
    network = pooled_encoder(tiny_unet(), 1, stages=2, dropout=0.0)
    network(torch.zeros(2, 1, 16, 16, 16)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_more_stages_than_there_are_and_networks_without_an_encoder_are_refused():
    with refused(InputError, value=4):
        pooled_encoder(tiny_unet(), 1, stages=4, dropout=0.0)
    with refused(InputError, value="Conv3d"):
        pooled_encoder(nn.Conv3d(1, 1, 1), 1, stages=1, dropout=0.0)


def test_windows_cover_the_body_and_not_the_air():
    image = in_a_corner((70, 64, 48))
    geometry = geometry_of(image)
    starts = window_starts(geometry, (16, 16, 16), 0.5)
    covered = np.zeros(geometry.shape, bool)
    for start in starts:
        assert (start >= 0).all() and (start + 16 <= geometry.shape).all()
        covered[tuple(slice(s, s + 16) for s in start)] = True
    body = image[0] > 0
    assert (covered & body).sum() > 0.97 * body.sum()  # a corner window with hardly any body is left out
    assert covered.sum() < 0.2 * covered.size and len(starts) > 4


def test_a_small_volume_is_one_window_that_reaches_beyond_it():
    image = ball((12, 20, 20), SPACING, 5)
    starts = window_starts(geometry_of(image), (16, 16, 32), 0.5)
    assert starts[0, 0] == -2 and starts[0, 2] == -6
    crop = crop_at(image, (-2, 0, -6), (16, 16, 32))
    assert crop.shape == (1, 16, 16, 32)
    np.testing.assert_array_equal(crop[:, 2:14, :, 6:26], image[:, :, :16])
    np.testing.assert_array_equal(crop[:, 0], crop[:, 2])  # repeated, no edge of zeros


def naive_case(network, image, starts, patch):
    crops = [torch.from_numpy(crop_at(image, start, patch))[None] for start in starts]
    return torch.cat([network.features(crop) for crop in crops])


@torch.no_grad()
def test_a_case_is_the_mean_over_windows_and_mirror_images():
    torch.manual_seed(1)
    network = pooled_encoder(tiny_unet(), 1, stages=2, dropout=0.5).eval()
    image = in_a_corner((40, 30, 30))
    geometry = geometry_of(image)
    plain = CasePredictor(network, (16, 16, 16), 0.5)
    found = plain.case_features(image, geometry)
    torch.testing.assert_close(found.features, naive_case(network, image, found.starts, (16, 16, 16)))
    torch.testing.assert_close(found.mean[0], found.features.mean(dim=0))
    assert plain.outputs(found.mean).shape == (1, 1)
    mirrored = CasePredictor(network, (16, 16, 16), 0.5, mirror_axes=(0, 2)).window_features(
        iter([image[:, :16, :16, :16]])
    )
    crop = torch.from_numpy(image[None, :, :16, :16, :16])
    expected = [network.features(crop.flip(axes)) for axes in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(mirrored, torch.stack(expected).mean(dim=0))


class BrightSpot(nn.Module):
    """An encoder whose one feature is the image itself: what it says depends on bright voxels alone."""

    output_channels = (1,)

    def forward(self, crops):
        return [crops]


@pytest.mark.slow
@torch.no_grad()
def test_occlusion_finds_the_place_that_decides():
    image = ball((24, 24, 24), SPACING, 10)
    image[0, 12:15, 6:9, 15:18] = 30.0
    geometry = geometry_of(image)
    network = PooledEncoder(BrightSpot(), 1, 1, 0.0)
    network.head = nn.Linear(2, 1, bias=False)
    network.head.weight.copy_(torch.tensor([[1.0, 0.0]]))  # the mean
    task = Regression(AGE, {"means": [0.0], "deviations": [2.0]})
    before = image.copy()
    change, block = occlusion(CasePredictor(network, (16, 16, 16), 0.5), task, image, geometry, max_windows=10**6)
    assert block == (2, 2, 2) and change.shape == (12, 12, 12)
    assert np.isnan(change[0, 0, 0]) and np.array_equal(image, before)
    assert tuple(np.unravel_index(np.nanargmax(change), change.shape)) in [(6, 3, 8), (6, 4, 8), (6, 3, 7), (6, 4, 7)]
    assert np.nanmax(change) > 5 * np.nanmedian(np.abs(change))


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Five balls in corners, the value of each its number."""
    set_folders(monkeypatch, tmp_path)
    images = {f"case{n}": in_a_corner((40, 30, 12 + 24 * (n % 2))) + np.float32(n) for n in range(5)}
    return write_preprocessed(tmp_path / "preprocessed", images, SPACING)


TRUTH = pd.DataFrame({"value": range(5)}, index=[f"case{n}" for n in range(5)])


def test_training_crops_show_the_body_of_different_cases_with_their_truth(dataset):
    crops = TargetCrops(dataset, TRUTH, (16, 16, 16), 4, training=True)
    for number in range(4):
        batch = crops(number, np.random.default_rng(number))
        assert len(set(batch.cases)) == 4 and batch.views.shape == (4, 1, 16, 16, 16)
        for key, value, view in zip(batch.cases, batch.target[:, 0], batch.views, strict=True):
            assert key == f"case{int(value)}"
            assert (view > value).float().mean() > 0.02  # body is brighter than 0, air is -2
        again = crops(number, np.random.default_rng(number))
        assert torch.equal(batch.views, again.views) and batch.cases == again.cases


def test_validation_goes_through_the_cases_once(dataset):
    crops = TargetCrops(dataset, TRUTH, (16, 16, 16), 2, training=False)
    batches = [crops(number, np.random.default_rng()) for number in range(3)]
    assert [key for batch in batches for key in batch.cases] == TRUTH.index.tolist()
    np.testing.assert_array_equal(batches[0].views[0, 0, :, :, 2:14], dataset.image("case0")[0, 12:28, 7:23])


def test_a_damaged_case_is_drawn_over_in_training_and_left_out_in_validation(dataset):
    (dataset.folder / "case1.b2nd").write_bytes(b"no image")
    training = TargetCrops(dataset, TRUTH, (16, 16, 16), 5, training=True)
    batch = training(0, np.random.default_rng(0))
    assert len(batch.cases) == 5 and "case1" not in batch.cases and list(training.readings.unreadable) == ["case1"]
    validation = TargetCrops(dataset, TRUTH, (16, 16, 16), 2, training=False)
    assert validation(0, np.random.default_rng()).cases == ["case0"]
    alone = TargetCrops(dataset, TRUTH.iloc[1:2], (16, 16, 16), 2, training=False)
    with pytest.raises(UnreadableCaseError):
        alone(0, np.random.default_rng())


@torch.no_grad()
def test_occlusion_takes_larger_blocks_where_windows_are_many(monkeypatch):
    image = in_a_corner((60, 40, 40))
    predictor = CasePredictor(pooled_encoder(tiny_unet(), 1, 1, 0.0).eval(), (16, 16, 16), 0.5)
    task = Regression(AGE, {"means": [0.0], "deviations": [1.0]})
    seen = []
    real = predictor.window_features

    def count(crops):
        crops = list(crops)
        seen.append(len(crops))
        return real(crops)

    monkeypatch.setattr(predictor, "window_features", count)
    change, block = occlusion(predictor, task, image, geometry_of(image), max_windows=100)
    assert sum(seen[1:]) <= 100 and block[0] >= 5 and np.isfinite(change).sum() == len(seen) - 1
