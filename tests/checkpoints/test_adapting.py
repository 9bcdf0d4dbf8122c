"""Each rule of adaptation against what it promises to keep."""

import itertools

import pytest
import torch
from torch.nn.functional import conv2d, conv3d, conv_transpose3d, interpolate

from nnunet_alice.checkpoints.adapting import (
    adapt,
    adapt_input_channels,
    adapt_kernel,
    adapt_upsampling,
    as_dimension,
    widen,
)


def same(kernel):
    return [k // 2 for k in kernel]


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("old", "new"), itertools.product(range(1, 5), repeat=2))
def test_equal_input_channels_give_the_old_response(old, new):
    weight, image = torch.randn(3, old, 3, 3, 3), torch.randn(2, 1, 6, 6, 6)
    adapted = adapt_input_channels(weight, new)
    assert adapted.shape == (3, new, 3, 3, 3)
    before, after = (
        conv3d(image.expand(-1, old, -1, -1, -1), weight),
        conv3d(image.expand(-1, new, -1, -1, -1), adapted),
    )
    assert torch.allclose(before, after)
    assert old != new or torch.equal(adapted, weight)


def test_extra_input_channels_are_ignored_at_first():
    weight, image, prior = torch.randn(3, 1, 3, 3, 3), torch.randn(2, 1, 6, 6, 6), torch.randn(2, 2, 6, 6, 6)
    adapted = adapt_input_channels(weight, 1, 2)
    assert torch.allclose(conv3d(torch.cat((image, prior), 1), adapted), conv3d(image, weight))


KERNELS = [(1, 1, 1), (1, 3, 3), (3, 3, 3), (5, 5, 5), (3, 1, 5)]


@pytest.mark.parametrize(("old", "new"), itertools.product(KERNELS, repeat=2))
def test_constants_give_the_old_response_whatever_the_kernel(old, new):
    weight, constant = torch.randn(3, 2, *old), torch.tensor([2.0, -3.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 7, 7, 7)
    adapted = adapt_kernel(weight, new)
    assert adapted.shape == (3, 2, *new)
    inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    before = conv3d(constant, weight, padding=same(old))[inside]
    assert torch.allclose(before, conv3d(constant, adapted, padding=same(new))[inside])
    if all(n >= o for o, n in zip(old, new, strict=True)):
        image = torch.randn(1, 2, 7, 7, 7)
        assert torch.allclose(conv3d(image, weight, padding=same(old)), conv3d(image, adapted, padding=same(new))), (
            "a kernel that only grows must not change anything"
        )


def test_taps_outside_go_to_the_nearest_one_inside():
    weight = torch.arange(1.0, 6.0).reshape(1, 1, 5, 1, 1)
    assert adapt_kernel(weight, (3, 1, 1)).flatten().tolist() == [1 + 2, 3, 4 + 5]
    assert adapt_kernel(weight, (1, 1, 1)).item() == 15
    assert adapt_kernel(weight[:, :, :4], (3, 1, 1)) is None and adapt_kernel(weight, (2, 1, 1)) is None


STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (4, 2, 2), (3, 3, 3)]


@pytest.mark.parametrize(("old", "new"), itertools.product(STRIDES, repeat=2))
def test_upsampling_of_other_strides(old, new):
    weight, image = torch.randn(2, 3, *old), torch.randn(1, 2, 4, 4, 4)
    adapted = adapt_upsampling(weight, new)
    assert adapted.shape == (2, 3, *new)
    before, after = conv_transpose3d(image, weight, stride=old), conv_transpose3d(image, adapted, stride=new)
    if old == new:
        assert torch.equal(adapted, weight)
    if all(max(o, n) % min(o, n) == 0 for o, n in zip(old, new, strict=True)):
        mean = [interpolate(x, size=(4, 4, 4), mode="area") for x in (before, after)]
        assert torch.allclose(*mean), "the mean over each voxel's children must stay"
    if all(n % o == 0 for o, n in zip(old, new, strict=True)):
        assert torch.allclose(after, interpolate(before, size=after.shape[2:], mode="nearest"))
    flat = torch.full((2, 3, *old), 0.7)
    assert torch.allclose(adapt_upsampling(flat, new), torch.full((2, 3, *new), 0.7))


def test_upsampling_in_2d():
    assert adapt_upsampling(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]), (1, 2)).flatten().tolist() == [3, 5]


def test_wider_layers_keep_the_old_features():
    source, fresh = torch.randn(3, 2, 3, 3, 3), torch.randn(5, 4, 3, 3, 3)
    old, new = torch.randn(1, 2, 5, 5, 5), torch.randn(1, 2, 5, 5, 5)
    wide = widen(source, fresh)
    response = conv3d(torch.cat((old, new), 1), wide)
    assert torch.allclose(response[:, :3], conv3d(old, source))
    assert torch.equal(wide[3:], fresh[3:]), "new features start as initialised"
    assert torch.equal(widen(torch.ones(2), torch.zeros(3)), torch.tensor([1.0, 1.0, 0.0]))


def test_wider_decoder_layers_keep_upsampled_and_skipped_features_apart():
    source, fresh = torch.randn(3, 6, 1, 1, 1), torch.randn(4, 8, 1, 1, 1)
    up, skip, more = torch.randn(1, 3, 2, 2, 2), torch.randn(1, 3, 2, 2, 2), torch.randn(1, 1, 2, 2, 2)
    response = conv3d(torch.cat((up, more, skip, more), 1), widen(source, fresh, groups=2))
    assert torch.allclose(response[:, :3], conv3d(torch.cat((up, skip), 1), source))


def test_between_2d_and_3d():
    flat, deep = torch.randn(3, 2, 3, 3), torch.randn(3, 2, 3, 3, 3)
    slices = torch.randn(1, 2, 5, 6, 6)
    up = adapt(flat, torch.zeros(3, 2, 1, 3, 3))
    assert up.how == "2D to 3D"
    assert torch.allclose(conv3d(slices, up.tensor)[:, :, 2], conv2d(slices[:, :, 2], flat))
    down = adapt(deep, torch.zeros(3, 2, 3, 3))
    extruded = slices[:, :, :1].expand(-1, -1, 5, -1, -1)
    assert torch.allclose(conv3d(extruded, deep)[:, :, 1], conv2d(slices[:, :, 0], down.tensor))
    pooled = adapt(torch.randn(2, 3, 2, 2, 2), torch.zeros(2, 3, 2, 2), transposed=True)
    assert pooled.tensor.shape == (2, 3, 2, 2) and pooled.how == "3D to 2D"
    assert as_dimension(deep, 2) is None


def test_equal_shapes_are_the_identity_for_every_kind():
    cascade = {"image_channels": 2, "source_image_channels": 2}
    for options in ({}, {"transposed": True}, {"image_channels": 4}, cascade, {"concatenated": True}):
        source = torch.randn(2, 4, 3, 3, 3)
        result = adapt(source, torch.zeros(2, 4, 3, 3, 3), **options)
        assert torch.equal(result.tensor, source) and result.how == "" and result.carried == source.numel()
    assert adapt(torch.tensor(3), torch.tensor(0)).tensor == 3


def test_rules_add_up_and_are_named():
    result = adapt(torch.ones(2, 1, 3, 3, 3), torch.full((4, 3, 1, 3, 3), 9.0), image_channels=3)
    assert result.how == "kernel 3x3x3 to 1x3x3, 1 to 3 input channels, widened 2x3 to 4x3"
    assert torch.allclose(result.tensor[:2], torch.ones(()))  # three taps summed, a third for each channel
    assert (result.tensor[2:] == 9).all() and result.carried == 2 * 3 * 9
    result = adapt(torch.ones(4, 2, 2, 2, 2), torch.full((5, 3, 1, 2, 2), 9.0), transposed=True)
    assert result.how == "stride 2x2x2 to 1x2x2, widened 2x4 to 3x5"
    assert (result.tensor[:4, :2] == 1).all() and (result.tensor[4, :2] == 0).all() and (result.tensor[:, 2] == 9).all()


@pytest.mark.parametrize(("old", "prior"), [(3, 2), (1, 2), (2, 1), (4, 1)])
def test_a_cascade_with_as_many_channels_ignores_the_previous_stage(old, prior):
    """The source's channels are all images; the target has one image and one-hot channels behind it."""
    weight, image, onehot = torch.randn(2, old, 3, 3, 3), torch.randn(1, 1, 6, 6, 6), torch.randn(1, prior, 6, 6, 6)
    result = adapt(weight, torch.ones(2, 1 + prior, 3, 3, 3), image_channels=1)
    response = conv3d(torch.cat((image, onehot), 1), result.tensor)
    assert torch.allclose(response, conv3d(image.expand(-1, old, -1, -1, -1), weight))
    assert result.carried == 2 * 27 and f"{prior} more of zeros" in result.how
    wider = adapt(weight, torch.ones(5, 1 + prior, 3, 3, 3), image_channels=1)
    assert wider.carried == 2 * 27 and torch.equal(wider.tensor[:2], result.tensor)


def test_a_cascade_goes_whole_to_the_same_cascade_and_its_images_alone_elsewhere():
    weight, image = torch.randn(2, 3, 3, 3, 3), torch.randn(1, 1, 6, 6, 6)
    same = adapt(weight, torch.ones(2, 3, 3, 3, 3), image_channels=1, source_image_channels=1)
    assert torch.equal(same.tensor, weight) and same.how == "" and same.carried == weight.numel()
    for channels, images in ((3, 3), (1, 1), (5, 2)):
        result = adapt(weight, torch.ones(2, channels, 3, 3, 3), image_channels=images, source_image_channels=1)
        assert torch.allclose(
            conv3d(image.expand(-1, images, -1, -1, -1), result.tensor[:, :images]), conv3d(image, weight[:, :1])
        )
        assert not result.tensor[:, images:].any() and result.carried == 2 * images * 27


@pytest.mark.parametrize(
    ("source", "fresh", "options", "why"),
    [
        ((4, 2, 3, 3, 3), (3, 2, 3, 3, 3), {}, "fewer features than the source"),
        ((3, 4, 3, 3, 3), (4, 3, 3, 3, 3), {}, "fewer features than the source"),
        ((4,), (3,), {}, "fewer features than the source"),
        ((4, 2, 2, 2, 2), (4, 2, 3, 3, 3), {}, "kernel of even size"),
        ((4,), (4, 1, 1, 1, 1), {}, "other kind of layer"),
        ((4, 4, 3, 3, 3), (4, 8, 3, 3, 3), {"concatenated": True}, "its input is not [upsampled, skipped]"),
    ],
)
def test_what_cannot_be_carried_is_told(source, fresh, options, why):
    assert adapt(torch.ones(source), torch.ones(fresh), **options) == (None, 0, why)
