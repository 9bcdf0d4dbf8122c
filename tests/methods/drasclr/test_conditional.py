"""Conditional convolution against its formula, one sample at a time; the way of locations through an encoder."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_alice.methods.drasclr.conditional import (
    ConditionalConv3d,
    ConditionalEncoder,
    LocationGroups,
    UnconditionedEncoder,
)

# Kernels and strides of nnU-Net plans, isotropic and anisotropic, and the 1 x 1 x 1 of residual skips.
GEOMETRIES = [
    ((3, 3, 3), (1, 1, 1)),
    ((3, 3, 3), (2, 2, 2)),
    ((1, 3, 3), (1, 1, 1)),
    ((1, 3, 3), (1, 2, 2)),
    ((3, 3, 3), (1, 2, 2)),
    ((1, 1, 1), (1, 1, 1)),
]
# One location, some that share, groups of different size, every sample another.
COUNTS = [(4,), (2, 2), (1, 3), (2, 1, 1), (1, 1, 1, 1)]


def make_layer(kernel=(3, 3, 3), stride=(1, 1, 1), dtype=torch.float64, **settings):
    padding = tuple((k - 1) // 2 for k in kernel)
    generator = torch.Generator().manual_seed(1)
    return ConditionalConv3d(3, 4, kernel, stride, padding, num_experts=5, generator=generator, **settings).to(dtype)


def make_batch(counts, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(sum(counts), 3, 5, 6, 7, generator=generator, dtype=dtype)
    points = torch.rand(len(counts), 3, generator=generator, dtype=dtype) * 2 - 1
    return x, LocationGroups(points, counts)


def one_by_one(layer, x, locations):
    """The formula, sample after sample, expert after expert."""
    outputs = []
    of_sample = [group for group, count in enumerate(locations.counts) for _ in range(count)]
    for sample, group in enumerate(of_sample):
        point = locations.points[group]
        kernel = 0
        for expert in range(layer.num_experts):
            r = torch.sigmoid((layer.routing_weight[expert] * point).sum() + layer.routing_bias[expert])
            kernel = kernel + r * layer.experts[expert]
        y = functional.conv3d(
            x[sample : sample + 1], kernel, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        outputs.append(y)
    return torch.cat(outputs)


def with_gradients(function, layer, x):
    """Output, and gradients of a fixed random functional with respect to the input and all parameters."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = function(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    (y * weights).sum().backward()
    return y.detach(), x.grad, {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("kernel", "stride"), GEOMETRIES)
def test_forward_and_gradients_are_those_of_the_formula(kernel, stride, counts, bias):
    layer = make_layer(kernel, stride, bias=bias)
    x, locations = make_batch(counts)
    ours = with_gradients(lambda x: layer(x, locations), layer, x)
    naive = with_gradients(lambda x: one_by_one(layer, x, locations), layer, x)
    for mine, theirs in zip(ours[:2], naive[:2], strict=True):
        torch.testing.assert_close(mine, theirs)
    assert ours[2].keys() == naive[2].keys() and len(ours[2]) == 3 + bias
    for name, gradient in naive[2].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(ours[2][name], gradient)


@pytest.mark.parametrize("counts", COUNTS)
def test_grouped_convolutions(counts):
    layer = ConditionalConv3d(4, 6, 3, padding=1, groups=2, num_experts=3).double()
    x = torch.randn(sum(counts), 4, 4, 4, 4, dtype=torch.float64)
    locations = LocationGroups(torch.rand(len(counts), 3, dtype=torch.float64), counts)
    torch.testing.assert_close(layer(x, locations), one_by_one(layer, x, locations))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", COUNTS)
def test_autocast_computes_in_half_and_mixes_in_full_precision(counts, half):
    layer = make_layer(dtype=torch.float32)
    x, locations = make_batch(counts, torch.float32)
    with torch.autocast("cpu", dtype=half):
        y = layer(x, locations)
        kernels = layer.mix(locations.points)
    assert y.dtype == half
    assert kernels.dtype == torch.float32
    exact = one_by_one(layer.double(), x.double(), LocationGroups(locations.points.double(), counts))
    error = (y.double() - exact).abs().max() / exact.std()
    assert error < {torch.bfloat16: 0.05, torch.float16: 0.006}[half]
    y.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_experts_start_like_a_plain_convolution():
    torch.manual_seed(0)
    plain = nn.Conv3d(16, 32, 3)
    layer = ConditionalConv3d(16, 32, 3, num_experts=4)
    assert layer.experts.shape == (4, *plain.weight.shape)
    for expert in layer.experts:
        assert float(expert.detach().std()) == pytest.approx(float(plain.weight.detach().std()), rel=0.05)
    assert layer.experts.detach().abs().max() <= plain.weight.detach().abs().max() * 1.01


def test_same_seed_same_layer():
    one, two = make_layer(), make_layer()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


class TwoLevels(nn.Module):
    """A small encoder that returns skips, like nnU-Net's; blocks call ``conv(x)``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(
            ConditionalConv3d(1, 4, 3, padding=1, num_experts=3), nn.InstanceNorm3d(4), nn.ReLU()
        )
        self.second = nn.Sequential(ConditionalConv3d(4, 6, 3, 2, 1, num_experts=3), nn.LeakyReLU(inplace=True))

    def forward(self, x):
        skip = self.first(x)
        return [skip, self.second(skip)]


@pytest.mark.parametrize("kind", ["grouped", "each"])
def test_encoder_gives_every_sample_its_location(kind):
    encoder = ConditionalEncoder(TwoLevels().double())
    points = torch.rand(3, 3, dtype=torch.float64) * 2 - 1
    sample_points = points[[0, 0, 0, 1, 1, 2]]
    x = torch.randn(6, 1, 6, 6, 6, dtype=torch.float64)
    batch = encoder(x, sample_points if kind == "each" else LocationGroups(points, (3, 2, 1)))
    for sample in range(6):
        alone = encoder(x[sample : sample + 1], sample_points[sample : sample + 1])
        for level, expected in zip(batch, alone, strict=True):
            torch.testing.assert_close(level[sample : sample + 1], expected)
    # Locations matter at all: the same patch elsewhere looks different.
    assert not torch.allclose(encoder(x[:1], points[:1])[1], encoder(x[:1], points[1:2])[1])


def test_context_is_empty_after_a_pass_and_after_a_failed_pass():
    encoder = ConditionalEncoder(TwoLevels())
    encoder(torch.randn(1, 1, 4, 4, 4), torch.zeros(1, 3))
    assert encoder.context.locations is None
    with pytest.raises(RuntimeError):
        encoder(torch.randn(1, 7, 4, 4, 4), torch.zeros(1, 3))
    assert encoder.context.locations is None
    with pytest.raises(ValueError):
        encoder.encoder(torch.randn(1, 1, 4, 4, 4))


def test_a_copy_has_a_context_of_its_own():
    encoder = ConditionalEncoder(TwoLevels())
    twin = copy.deepcopy(encoder)
    x, points = torch.randn(2, 1, 4, 4, 4), torch.rand(2, 3)
    torch.testing.assert_close(twin(x, points)[1], encoder(x, points)[1])
    contexts = {id(layer.context) for layer in twin.modules() if isinstance(layer, ConditionalConv3d)}
    assert contexts == {id(twin.context)} and id(encoder.context) not in contexts
    assert encoder.state_dict().keys() == twin.state_dict().keys()


# Eager backend: what can break is the tracing of the context; generating code for it takes minutes.
@pytest.mark.slow
@pytest.mark.parametrize("counts", [(1, 3), (1, 1, 1, 1)])
def test_traced_as_one_graph(counts):
    encoder = ConditionalEncoder(TwoLevels())
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    x, locations = torch.randn(4, 1, 6, 6, 6), LocationGroups(torch.rand(len(counts), 3), counts)
    expected = with_gradients(lambda x: encoder(x, locations)[1], encoder, x)
    result = with_gradients(lambda x: compiled(x, locations)[1], encoder, x)
    torch.testing.assert_close(result[0], expected[0])
    torch.testing.assert_close(result[1], expected[1])
    for name, gradient in expected[2].items():
        torch.testing.assert_close(result[2][name], gradient, rtol=1e-4, atol=1e-5)
    assert encoder.context.locations is None


def test_unconditioned_encoder_ignores_locations():
    plain = nn.Conv3d(1, 2, 3)
    x = torch.randn(2, 1, 4, 4, 4)
    assert torch.equal(UnconditionedEncoder(plain)(x, LocationGroups(torch.rand(1, 3), (2,))), plain(x))


def test_bad_input():
    x, locations = make_batch((2, 2))
    with pytest.raises(ValueError):
        make_layer()(x[:3], locations)
    with pytest.raises(ValueError):
        make_layer()(x)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        ConditionalEncoder(TwoLevels())(torch.randn(2, 1, 4, 4, 4), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="num_experts"):
        ConditionalConv3d(1, 1, 3, num_experts=0)
    with pytest.raises(ValueError, match="ConditionalConv3d"):
        ConditionalEncoder(nn.Conv3d(1, 1, 3))
    with pytest.raises(ValueError):
        ConditionalEncoder(TwoLevels())(torch.randn(3, 1, 4, 4, 4), torch.zeros(2, 3))
