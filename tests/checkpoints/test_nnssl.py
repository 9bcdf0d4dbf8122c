"""nnssl's adaptation plan: written so that upstream's reader finds all it needs, and read from theirs."""

import json

import pytest
import torch
from support.refused import refused
from support.upstream_reader import network_with_weights, pretrain_info

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.nnssl import PLAN_KEY, adaptation_plan, unet_weights
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.errors import CheckpointError


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_upstream_can_build_the_network_and_load_encoder_and_stem(kind, make_plans, make_network, tmp_path):
    """Goes the way of upstream's reader: first configuration, class by name, submodules by key, strict loading."""
    plans = make_plans(kind, anisotropic=True)
    before = json.dumps(plans)
    source = make_network(plans, channels=2)
    plan = adaptation_plan(plans, "3d_fullres", 2)
    assert json.dumps(plans) == before
    save_checkpoint({"network_weights": source.state_dict(), PLAN_KEY: plan, "citations": []}, tmp_path / "c.pth")

    info, configuration = pretrain_info(tmp_path / "c.pth")
    assert configuration["spacing"] == [3.0, 1.0, 1.0] and configuration["patch_size"] == [64, 64, 64]
    assert info["pt_num_in_channels"] == 2 and info["pt_used_patchsize"] == [64, 64, 64]
    network = network_with_weights(tmp_path / "c.pth", channels=2, classes=5)
    image = torch.rand(1, 2, 16, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(source.encoder(image), network.encoder(image), strict=True))


def test_upstream_repeats_a_residual_stem_for_more_channels(make_plans, make_network, tmp_path):
    plans = make_plans("residual")
    source = make_network(plans)
    plan = adaptation_plan(plans, "3d_fullres", 1)
    save_checkpoint({"network_weights": source.state_dict(), PLAN_KEY: plan}, tmp_path / "c.pth")
    network = network_with_weights(tmp_path / "c.pth", channels=3, classes=2)
    image = torch.rand(1, 1, 16, 16, 16)
    same = zip(source.encoder(image), network.encoder(image.repeat(1, 3, 1, 1, 1)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in same)


def test_names_of_our_own_and_stock_checkpoints(make_plans, make_network):
    network = make_network(make_plans())
    named = unet_weights({"network_weights": network.state_dict()}, "c.pth")
    assert set(named) == {name for name, _ in network.named_parameters()}


def test_an_nnssl_encoder_of_another_name_is_renamed(make_plans, make_network):
    network = make_network(make_plans("residual"))
    encoder = {f"online_encoder.{name}": w for name, w in network.encoder.state_dict().items()}
    weights = encoder | {"target_encoder.stages.0.x": torch.ones(1), "decoder.stages.0.x": torch.ones(1)}
    plan = {"key_to_encoder": "online_encoder.stages", "key_to_stem": "online_encoder.stem"}
    named = unet_weights({"network_weights": weights, PLAN_KEY: plan}, "c.pth")
    assert set(named) == {f"encoder.{name}" for name, _ in network.encoder.named_parameters()}


def test_unknown_families_are_told_in_one_sentence(tmp_path):
    weights = {"encoder.layer1.0.conv1.weight": torch.ones(1)}
    save_checkpoint({"network_weights": weights, PLAN_KEY: {}, "trainer_name": "Other"}, tmp_path / "c.pth")
    with refused(CheckpointError, path="c.pth", value=next(iter(weights))) as caught:
        unet_weights(load_checkpoint(tmp_path / "c.pth"), tmp_path / "c.pth")
    assert "\n" not in str(caught.value)
