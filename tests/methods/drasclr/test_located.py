"""A U-Net that is told its place by coordinate channels: what they mean, and that they only choose kernels."""

import numpy as np
import pytest
import torch
from tiny_networks import tiny_unet

from nnunet_alice.methods.drasclr.conditional import LocationGroups
from nnunet_alice.methods.drasclr.located import (
    HALF_EXTENT,
    MIDDLE,
    LocatedUNet,
    decode_locations,
    encode_locations,
    tile_locations,
)


def coded(locations: np.ndarray) -> torch.Tensor:
    """(B, 3, ...) float channels of locations."""
    return torch.from_numpy(encode_locations(locations).astype(np.float32))


def random_tiles(batch=2, size=(8, 8, 8), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (batch, 3, *size))


def located_unet(family="plain", gain=1.0, channels=1, experts=3) -> LocatedUNet:
    torch.manual_seed(0)
    return LocatedUNet(tiny_unet(family, channels), experts, location_gain=gain)


def test_codes_are_whole_numbers_far_from_zero_and_come_back():
    locations = random_tiles()
    codes = encode_locations(locations)
    assert codes.dtype == np.int16 and codes.min() >= MIDDLE - HALF_EXTENT > 0
    back, valid = decode_locations(torch.from_numpy(codes).float())
    assert valid.all()
    np.testing.assert_allclose(back, locations, atol=0.5 / HALF_EXTENT + 1e-6)
    np.testing.assert_array_equal(encode_locations(np.array([-7.0, 7.0])), [MIDDLE - HALF_EXTENT, MIDDLE + HALF_EXTENT])


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
    mixed[:, :, :, 0] = 0.8 * MIDDLE  # a row outside that interpolation filled to 80 per cent
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
    elsewhere = network(torch.cat((image, torch.full_like(channels, MIDDLE + HALF_EXTENT)), dim=1))
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
    with pytest.raises(ValueError, match="has no encoder and decoder"):
        LocatedUNet(torch.nn.Conv3d(1, 1, 3))
