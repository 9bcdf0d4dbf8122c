"""What a patch is to DrasCLR: cells and removed statistics against a naive recomputation, and their standardisation."""

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_alice.methods.drasclr.conditional import LocationGroups, UnconditionedEncoder
from nnunet_alice.methods.drasclr.conversion import to_conditional, to_plain
from nnunet_alice.methods.drasclr.representation import LandmarkStandardisation, PatchRepresentation

FEATURES = [4, 6, 8]


def make_encoder(kind=PlainConvUNet):
    torch.manual_seed(0)
    depth = {"n_conv_per_stage": 2} if kind is PlainConvUNet else {"n_blocks_per_stage": 2}
    return kind(
        1, 3, FEATURES, nn.Conv3d, 3, [1, 2, 2], num_classes=2, n_conv_per_stage_decoder=1, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, **depth,
    ).encoder  # fmt: skip


def at_middle(count):
    return LocationGroups(torch.zeros(1, 3), (count,))


def patches(count=4):
    return torch.randn(count, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def test_cells_and_statistics_are_those_computed_by_hand():
    encoder, x = make_encoder(), patches()
    represent = PatchRepresentation(UnconditionedEncoder(encoder), FEATURES[-1], 2)
    found = represent(x, at_middle(4))
    skips = encoder(x)
    expected = [skips[-1].flatten(1)]  # 2 x 2 x 2 voxels at the bottleneck
    for stage, source in enumerate([x, *skips[:-1]]):
        before = encoder.stages[stage][0].convs[0].conv(source).flatten(2)
        expected += [before.mean(dim=2), before.var(dim=2, correction=0).sqrt(), before.clamp(min=0).mean(dim=2)]
    assert found.shape == (4, represent.width) == (4, 8 * 8 + 3 * sum(FEATURES))
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4)
    expected[0] = skips[-1].mean(dim=(2, 3, 4))
    torch.testing.assert_close(represent.features(x, at_middle(4)), torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_it_tells_intensities_that_the_bottleneck_does_not(kind):
    represent = PatchRepresentation(UnconditionedEncoder(make_encoder(kind)), FEATURES[-1], 2)
    x = patches(1)
    one, two = (represent(image, at_middle(1))[0] for image in (x, 3 * x))
    cells = FEATURES[-1] * 8
    torch.testing.assert_close(one[:cells], two[:cells], atol=1e-3, rtol=1e-3)
    assert (one[cells:] - two[cells:]).norm() > 0.5 * one[cells:].norm()
    assert represent.width == cells + 3 * (sum(FEATURES) + (FEATURES[0] if kind is ResidualEncoderUNet else 0))


def test_rows_keep_the_order_of_the_batch():
    encoder = to_conditional(make_encoder(), 3, location_gain=1.0)
    represent = PatchRepresentation(encoder, FEATURES[-1], 2)
    points = torch.tensor([[0.5, 0, 0], [-0.5, 0, 0]])
    x = patches(3)
    together = represent(x, LocationGroups(points, (2, 1)))
    for row, point in enumerate(points[[0, 0, 1]]):
        alone = represent(x[row : row + 1], LocationGroups(point[None], (1,)))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-4)


def test_the_encoder_stays_as_it_is_and_copies_are_apart():
    plain = make_encoder()
    encoder = to_conditional(plain, 3)
    keys = list(encoder.state_dict())
    represent = PatchRepresentation(encoder, FEATURES[-1], 2)
    assert list(encoder.state_dict()) == keys
    assert list(to_plain(encoder, torch.zeros(1, 3)).state_dict()) == list(plain.state_dict())
    twin = copy.deepcopy(represent)
    x = patches(2)
    torch.testing.assert_close(twin(x, at_middle(2)), represent(x, at_middle(2)))
    with torch.no_grad():
        for parameter in twin.encoder.parameters():
            parameter.zero_()
    assert twin(x, at_middle(2)).abs().max() < 0.01 < represent(x, at_middle(2)).abs().max()
    encoder(x, at_middle(2))  # by somebody else: nothing is kept
    assert represent._taken.moments is None


@pytest.mark.slow
def test_it_compiles_and_runs_under_autocast():
    encoder = to_conditional(make_encoder(), 3, location_gain=1.0)
    represent = PatchRepresentation(encoder, FEATURES[-1], 2)
    x = patches(2)
    expected = represent(x, at_middle(2))
    compiled = torch.compile(lambda images: represent(images, at_middle(2)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        found = represent(x, at_middle(2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.15, rtol=0.1)


def test_standardisation_centres_each_landmark_and_averages_variances():
    layer, rows = LandmarkStandardisation(3, momentum=0.75), torch.randn(6, 5, 3) * 2 + 7
    groups = LocationGroups(torch.tensor([[0.1, 0, 0], [0.2, 0, 0]]), (3, 2))
    with torch.no_grad():
        layer(rows[0], groups)
    assert layer.batches == 0, "the key encoder's passes must not move it"
    variance = torch.ones(3)
    for number, batch in enumerate(rows):
        centred = batch.clone()
        for group in ([0, 1, 2], [3, 4]):
            centred[group] -= batch[group].mean(dim=0)
        old = min(0.75, number / (number + 1))
        variance = old * variance + (1 - old) * centred.square().mean(dim=0)
        torch.testing.assert_close(layer(batch, groups), centred / (variance + 1e-5).sqrt())
    twin = LandmarkStandardisation(3, momentum=0.75)
    twin.load_state_dict(layer.state_dict())
    one, two = (each.eval()(rows[0], at_middle(5)) for each in (layer, twin))
    assert torch.equal(one, two) and layer.batches == 6


def test_a_landmarks_only_row_is_kept():
    layer, row = LandmarkStandardisation(3).eval(), torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(layer(row, at_middle(1)), row, atol=1e-4, rtol=1e-4)
