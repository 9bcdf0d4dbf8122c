"""A U-Net that is told its place by coordinate channels: what they mean, and that they only choose kernels."""

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from skimage.transform import resize
from support.tiny_networks import tiny_unet

from nnunet_alice.methods.drasclr.conditional import LocationGroups
from nnunet_alice.methods.drasclr.located import (
    HEAVY_WEIGHT,
    LIGHT_WEIGHT,
    WEIGHT,
    LocatedUNet,
    decode_locations,
    encode_locations,
    location_weights,
    tile_locations,
)


def coded(locations: np.ndarray, inside=None) -> torch.Tensor:
    """(B, 4, ...) float channels of locations (B, 3, ...), valid everywhere or where ``inside`` says so."""
    shape = locations.shape[2:]
    weights = location_weights(np.ones(shape, dtype=bool) if inside is None else inside)
    channels = [[weights, *(encode_locations(axis, weights) for axis in tile)] for tile in locations]
    return torch.from_numpy(np.array(channels, dtype=np.float32))


def random_tiles(batch=2, size=(8, 8, 8), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (batch, 3, *size))


def located_unet(family="plain", gain=1.0, channels=1, experts=3) -> LocatedUNet:
    torch.manual_seed(0)
    return LocatedUNet(tiny_unet(family, channels), experts, location_gain=gain)


def test_codes_are_whole_numbers_above_zero_and_come_back():
    locations = random_tiles()
    weights = location_weights(np.ones((8, 8, 8), dtype=bool))
    codes = encode_locations(locations, weights)
    assert codes.dtype == np.int16 and codes.min() > 0
    back, valid = decode_locations(coded(locations))
    assert valid.all()
    np.testing.assert_allclose(back, locations, atol=1.01 / WEIGHT)
    far = decode_locations(coded(np.array([-700.0, 700.0]).repeat(3).reshape(2, 3, 1, 1, 1)))[0]
    assert far.flatten(1).tolist() == [[-1] * 3, [1] * 3]


def test_every_slice_has_room_for_overshoot_where_there_is_background():
    inside = np.random.default_rng(0).random((5, 6, 7)) < 0.5
    inside[2] = False
    weights = location_weights(inside)
    assert ((weights > 0) == inside).all() and set(np.unique(weights)) == {0, WEIGHT, HEAVY_WEIGHT, LIGHT_WEIGHT}
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        assert ((weights == HEAVY_WEIGHT).any(axis=others) == inside.any(axis=others)).all()
    assert (location_weights(np.ones((3, 3, 3), dtype=bool)) == WEIGHT).all()


@pytest.mark.parametrize("z_mm", [1.0, 4.0])  # 4: slices are resampled one by one
@pytest.mark.parametrize("factor", [0.55, 1.7])
def test_resampling_of_order_3_leaves_places_right_up_to_the_edge_of_the_image(factor, z_mm):
    """A ball in exact zeros, as a skull-stripped MR is: interpolation rings there by a tenth of the values."""
    shape, spacing = (40, 44, 36), (z_mm, 1.0, 1.0)
    grids = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grids**2).sum(axis=0) < 0.6
    channels = coded(0.8 * grids[None], inside)[0].numpy()
    target = tuple(round(n * factor) for n in shape)
    how = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    resampled = resample_data_or_seg_to_shape(channels, target, spacing, tuple(s / factor for s in spacing), **how)
    locations, valid = (x[0].numpy() for x in decode_locations(torch.from_numpy(resampled)[None]))
    expected = np.stack([0.8 * resize(grid, target, order=1, mode="edge") for grid in grids])
    across = slice(1, None) if z_mm > 1 else slice(None)  # along thick slices nnU-Net takes the nearest
    off = np.abs(locations - expected)[across].max(axis=0)[valid[0]]
    assert valid.mean() == pytest.approx(inside.mean(), rel=0.05)
    assert (off > 0.1).mean() < 0.005 and np.quantile(off, 0.99) < 0.02
    tile = tile_locations(torch.from_numpy(resampled)[None, :, : target[0] // 2])[0]
    half = expected[:, : target[0] // 2][:, valid[0, : target[0] // 2]]
    np.testing.assert_allclose(tile, half.mean(axis=1), atol=0.01)


def test_the_location_of_a_tile_is_the_mean_over_its_valid_voxels():
    locations = random_tiles(seed=1)
    channels = coded(locations)
    inside = np.random.default_rng(2).random((2, 8, 8, 8)) < 0.3
    channels[~torch.from_numpy(inside)[:, None].expand_as(channels)] = 0
    expected = [[locations[b, axis][inside[b]].mean() for axis in range(3)] for b in range(2)]
    np.testing.assert_allclose(tile_locations(channels), expected, atol=1e-3)


def test_padding_mirroring_and_voxels_mixed_with_the_outside_leave_it_alone():
    channels = coded(random_tiles(1, seed=3) * 0.1 + 0.6)
    place = tile_locations(channels)
    padded = torch.nn.functional.pad(channels, (3, 0, 5, 1, 0, 2))
    torch.testing.assert_close(tile_locations(padded), place)
    torch.testing.assert_close(tile_locations(padded.flip(2, 4)), place)
    mixed = padded.clone()
    mixed[:, :, :, 0] = 0.4 * padded[:, :, :, 7]  # a row outside that interpolation filled to 40 per cent
    torch.testing.assert_close(tile_locations(mixed), place)


def test_a_tile_without_a_valid_voxel_lies_in_the_middle():
    channels = coded(random_tiles())
    channels[1] = 0
    assert tile_locations(channels)[1].tolist() == [0, 0, 0] and tile_locations(channels)[0].abs().min() > 0


@pytest.mark.parametrize("family", ["plain", "residual"])
def test_logits_are_those_of_the_conditional_encoder_at_each_tiles_location(family):
    network = located_unet(family, channels=2).eval()
    image, channels = (
        torch.randn(3, 2, 8, 8, 8),
        coded(random_tiles(3, seed=4) * 0.1 + [[[[[0.5]]]], [[[[-0.5]]]], [[[[0]]]]]),
    )
    together = network(torch.cat((image, channels), dim=1))
    for sample in range(3):
        where = LocationGroups(tile_locations(channels)[sample : sample + 1], (1,))
        alone = network.decoder(network.encoder(image[sample : sample + 1], where))
        torch.testing.assert_close(together[sample : sample + 1], alone, atol=1e-5, rtol=1e-4)


def test_coordinates_are_never_convolved():
    network, image = located_unet().eval(), torch.randn(1, 1, 8, 8, 8)
    channels = coded(random_tiles(1, seed=5))
    shuffled = channels.flatten(2)[:, :, torch.randperm(512)].view_as(channels)
    out = network(torch.cat((image, channels), dim=1))
    torch.testing.assert_close(network(torch.cat((image, shuffled), dim=1)), out, atol=1e-5, rtol=1e-4)
    elsewhere = network(torch.cat((image, coded(np.ones((1, 3, 8, 8, 8)))), dim=1))
    assert (elsewhere - out).abs().max() > 1e-2


def test_without_dependence_on_the_location_it_is_the_plain_network():
    torch.manual_seed(1)
    plain = tiny_unet("residual").eval()
    image, channels = torch.randn(2, 1, 8, 8, 8), coded(random_tiles())
    expected = plain(image)
    network = LocatedUNet(plain, 4, location_gain=0.0).eval()
    torch.testing.assert_close(network(torch.cat((image, channels), dim=1)), expected, atol=1e-5, rtol=1e-4)


def test_every_weight_is_saved_once_and_loads_strictly():
    one, other = located_unet(), located_unet()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1)
    state = one.state_dict()
    assert not any(name.startswith("decoder.encoder") for name in state)
    other.load_state_dict(state)
    x = torch.cat((torch.randn(1, 1, 8, 8, 8), coded(random_tiles(1))), dim=1)
    torch.testing.assert_close(one.eval()(x), other.eval()(x))


@pytest.mark.slow
def test_it_compiles_as_one_graph_and_every_parameter_gets_a_gradient():
    network = located_unet()
    x = torch.cat((torch.randn(2, 1, 8, 8, 8), coded(random_tiles())), dim=1)
    expected = network(x)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    result = compiled(x)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    result.square().sum().backward()
    used = [name for name, p in network.named_parameters() if "seg_layers.0" not in name]  # for deep supervision only
    assert all(p.grad is not None for name, p in network.named_parameters() if name in used)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="Conv3d"):
        LocatedUNet(torch.nn.Conv3d(1, 1, 3))
