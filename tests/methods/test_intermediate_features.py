"""The tapped pass gives what the network gives, and the maps on the way."""

import pytest
import torch
from support.tiny_networks import tiny_unet
from torch import nn

from nnunet_alice.methods.intermediate_features import IntermediateFeatures, freeze_unused_decoder


@pytest.mark.parametrize("family", ["plain", "residual"])
@pytest.mark.parametrize("strides", [(1, 2, 2), (1, (1, 2, 2), 2)])
def test_output_is_the_networks_own(family, strides):
    network = tiny_unet(family, channels=2, strides=strides)
    x = torch.randn(2, 2, 8, 16, 12)
    maps = IntermediateFeatures(network)(x)
    torch.testing.assert_close(maps.output, network(x), rtol=0, atol=0)
    torch.testing.assert_close(maps.bottleneck, network.encoder(x)[-1], rtol=0, atol=0)
    assert len(maps.decoder) == 2
    torch.testing.assert_close(network.decoder.seg_layers[-1](maps.decoder[-1]), maps.output, rtol=0, atol=0)


def test_a_shorter_pass_gives_the_same_first_maps_and_no_output():
    network = tiny_unet()
    x = torch.randn(1, 1, 8, 8, 8)
    whole, first, none = (IntermediateFeatures(network)(x, stages) for stages in (None, 1, 0))
    torch.testing.assert_close(first.decoder[0], whole.decoder[0], rtol=0, atol=0)
    assert first.output is None and len(first.decoder) == 1
    assert none.output is None and none.decoder == ()


@pytest.mark.parametrize("stages", [None, 0, 1, 2])
def test_exactly_the_parameters_in_use_are_trained(stages):
    network = tiny_unet()
    freeze_unused_decoder(network, stages)
    maps = IntermediateFeatures(network)(torch.randn(1, 1, 8, 8, 8), stages)
    (maps.bottleneck.square().sum() + sum(m.square().sum() for m in maps.decoder)).backward(retain_graph=True)
    if maps.output is not None:
        maps.output.square().sum().backward()
    assert all(p.requires_grad == (p.grad is not None) for p in network.parameters())


def test_other_networks_are_refused():
    with pytest.raises(TypeError):
        IntermediateFeatures(nn.Sequential(nn.Conv3d(1, 1, 1)))
