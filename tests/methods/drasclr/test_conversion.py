"""Plain encoder -> conditional -> plain, with nnU-Net's own encoders."""

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_alice.methods.drasclr.conditional import ConditionalConv3d, ConditionalEncoder, LocationGroups
from nnunet_alice.methods.drasclr.conversion import to_conditional, to_plain


def make_network(kind):
    """A small U-Net as plans describe it, anisotropic at the top, initialised by nnU-Net's rule."""
    network_class, blocks = {
        "plain": (PlainConvUNet, {"n_conv_per_stage": [2, 1, 2]}),
        "residual": (ResidualEncoderUNet, {"n_blocks_per_stage": [1, 2, 1]}),
    }[kind]
    torch.manual_seed(0)
    network = network_class(
        input_channels=2,
        n_stages=3,
        features_per_stage=[4, 6, 8],
        conv_op=nn.Conv3d,
        kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        num_classes=2,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **blocks,
    )
    network.apply(network.initialize)
    return network


@pytest.fixture(params=["plain", "residual"])
def encoder(request):
    return make_network(request.param).encoder.double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 2, 8, 16, 16, generator=generator, dtype=torch.float64)
    return x, torch.rand(4, 3, generator=generator, dtype=torch.float64) * 2 - 1


def seeded():
    return torch.Generator().manual_seed(7)


def randomise_routing(conditional, weight):
    """Routing as after training; ``weight`` 0 makes it the same everywhere."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer in conditional.modules():
            if isinstance(layer, ConditionalConv3d):
                layer.routing_bias.normal_(generator=generator)
                layer.routing_weight.normal_(generator=generator).mul_(weight)


def assert_same(levels, expected):
    assert len(levels) == len(expected) == 3
    for one, two in zip(levels, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("num_experts", [1, 2, 8])
def test_conversion_keeps_the_outputs_at_every_location(encoder, batch, num_experts, spread):
    x, points = batch
    conditional = to_conditional(encoder, num_experts, spread=spread, generator=seeded())
    assert_same(conditional(x, points), encoder(x))
    assert_same(conditional(x, LocationGroups(points[:2], (2, 2))), encoder(x))


def test_every_convolution_is_converted_and_the_plain_encoder_left_alone(encoder):
    before = copy.deepcopy(encoder.state_dict())
    conditional = to_conditional(encoder, generator=seeded())
    layers = [m for m in conditional.modules() if isinstance(m, ConditionalConv3d)]
    assert len(layers) == sum(isinstance(m, nn.Conv3d) for m in encoder.modules())
    assert not any(isinstance(m, nn.Conv3d) for m in conditional.modules())
    assert encoder.state_dict().keys() == before.keys()
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in before.items())
    shared = {parameter.data_ptr() for parameter in encoder.parameters()}
    assert not shared & {parameter.data_ptr() for parameter in conditional.parameters()}
    # nnU-Net's blocks hold each convolution under two names: still one layer.
    names = [n for n, m in conditional.named_modules(remove_duplicate=False) if m is layers[0]]
    assert len(names) == 2


def test_experts_differ_so_that_they_can_learn_different_things(encoder, batch):
    x, points = batch
    conditional = to_conditional(encoder, 4, generator=seeded())
    conditional(x, points)[-1].square().sum().backward()
    layer = next(m for m in conditional.modules() if isinstance(m, ConditionalConv3d))
    kernel = next(m for m in encoder.modules() if isinstance(m, nn.Conv3d)).weight
    assert float(layer.experts.detach().std()) == pytest.approx(float(kernel.detach().std()), rel=0.2)
    gradients = layer.routing_weight.grad
    assert gradients.abs().max() > 0
    assert not torch.allclose(gradients[0], gradients[1])


def test_location_gain_lets_locations_in_from_the_start(encoder, batch):
    x, points = batch
    conditional = to_conditional(encoder, location_gain=1.0, generator=seeded())
    assert_same(conditional(x, torch.zeros(4, 3)), encoder(x))
    assert (conditional(x, points)[-1] - encoder(x)[-1]).abs().max() > 0.01


def test_collapse_is_exact_when_the_routing_is_constant(encoder, batch):
    x, points = batch
    conditional = to_conditional(encoder, generator=seeded())
    randomise_routing(conditional, weight=0.0)
    plain = to_plain(conditional, points)
    assert plain.state_dict().keys() == encoder.state_dict().keys()
    assert not any(isinstance(m, ConditionalConv3d) for m in plain.modules())
    assert_same(plain(x), conditional(x, points))
    assert (plain(x)[-1] - encoder(x)[-1]).abs().max() > 0.01


def test_collapse_mixes_at_the_mean_routing(encoder, batch):
    _, points = batch
    conditional = to_conditional(encoder, 3, generator=seeded())
    randomise_routing(conditional, weight=2.0)
    state = to_plain(conditional, points).state_dict()
    checked = 0
    for name, layer in conditional.encoder.named_modules():
        if not isinstance(layer, ConditionalConv3d):
            continue
        expected = 0
        for point in points:
            r = torch.sigmoid(layer.routing_weight @ point + layer.routing_bias)
            expected = expected + sum(r[e] * layer.experts[e] for e in range(3)) / len(points)
        torch.testing.assert_close(state[f"{name}.weight"], expected.detach())
        assert not state[f"{name}.weight"].requires_grad
        if layer.bias is not None:
            assert torch.equal(state[f"{name}.bias"], layer.bias)
        checked += 1
    assert checked == sum(isinstance(m, nn.Conv3d) for m in encoder.modules())


def test_round_trip_gives_the_weights_back_and_stock_code_loads_them(batch):
    network = make_network("plain").double()
    state = to_plain(to_conditional(network.encoder, generator=seeded()), batch[1]).state_dict()
    for key, value in network.encoder.state_dict().items():
        torch.testing.assert_close(state[key], value)
    network.encoder.load_state_dict(state, strict=True)


def test_seed_mode_and_gradient_flags_are_kept(encoder):
    encoder.eval()
    one, two = (to_conditional(encoder, generator=seeded()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not one.training and not any(m.training for m in one.modules())
    assert all(p.requires_grad for p in one.parameters())
    frozen = to_conditional(encoder.requires_grad_(False), generator=seeded())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not to_plain(frozen, torch.zeros(1, 3)).training


def test_state_dict_round_trip(encoder, batch):
    x, points = batch
    source = to_conditional(encoder, generator=seeded())
    randomise_routing(source, weight=1.0)
    target = to_conditional(encoder, generator=torch.Generator().manual_seed(8))
    target.load_state_dict(source.state_dict())
    assert_same(target(x, points), source(x, points))


def test_bad_input():
    with pytest.raises(ValueError, match=r"Conv3d"):
        to_conditional(nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match="circular"):
        to_conditional(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular")))
    conditional = to_conditional(nn.Sequential(nn.Conv3d(1, 1, 3)))
    assert isinstance(conditional, ConditionalEncoder)
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        to_plain(conditional, torch.zeros(0, 3))
