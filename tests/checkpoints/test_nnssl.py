"""nnssl's adaptation plan: written so that upstream's reader finds all it needs, and read from theirs."""

import json

import pytest
import torch

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.nnssl import PLAN_KEY, adaptation_plan, unet_weights
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.errors import CheckpointError


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_upstream_can_build_the_network_and_load_encoder_and_stem(kind, make_plans, make_network, tmp_path):
    """Goes the way of upstream's reader: first configuration, class by name, submodules by key, strict loading."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plans = make_plans(kind, anisotropic=True)
    before = json.dumps(plans)
    source = make_network(plans, channels=2)
    plan = adaptation_plan(plans, "3d_fullres", 2)
    assert json.dumps(plans) == before
    save_checkpoint({"network_weights": source.state_dict(), PLAN_KEY: plan, "citations": []}, tmp_path / "c.pth")

    checkpoint = torch.load(tmp_path / "c.pth", weights_only=True)
    plan, weights = checkpoint[PLAN_KEY], checkpoint["network_weights"]
    assert json.loads(json.dumps(plan)) == plan, "upstream writes parts of it into plans.json"
    first = next(iter(plan["pretrain_plan"]["configurations"].values()))
    assert first["spacing"] == [3.0, 1.0, 1.0] and first["patch_size"] == [64, 64, 64]
    assert plan["recommended_downstream_patchsize"] == [64, 64, 64] and plan["pretrain_num_input_channels"] == 2
    architecture = plan["architecture_plans"]
    assert architecture["arch_class_name"].endswith(("PlainConvUNet", "ResidualEncoderUNet"))
    network = get_network_from_plans(
        architecture["arch_class_name"],
        architecture["arch_kwargs"],
        architecture["arch_kwargs_requiring_import"],
        plan["pretrain_num_input_channels"],
        5,
        deep_supervision=False,
    )
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        part = {name[len(key) + 1 :]: w for name, w in weights.items() if name.startswith(key + ".")}
        network.get_submodule(key).load_state_dict(part, strict=True)
    assert all(f"{key}.weight" in weights for key in plan["keys_to_in_proj"])
    assert plan["key_to_lpe"] is None
    image = torch.rand(1, 2, 16, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(source.encoder(image), network.encoder(image), strict=True))


def test_recommended_patch_size(make_plans):
    plan = adaptation_plan(make_plans(), "3d_fullres", 1, recommended_patch_size=(96, 160, 160))
    assert plan["recommended_downstream_patchsize"] == [96, 160, 160]


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
    with pytest.raises(CheckpointError, match=rf"c\.pth is not a U-Net.*Other.*{next(iter(weights))}") as caught:
        unet_weights(load_checkpoint(tmp_path / "c.pth"), tmp_path / "c.pth")
    assert "\n" not in str(caught.value)
