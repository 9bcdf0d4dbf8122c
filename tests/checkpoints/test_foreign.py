"""Weights of other projects: files with the same keys and shapes are carried whole, or refused with the reason."""

import pytest
import torch
from support.refused import refused

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.nnssl import PLAN_KEY, unet_weights
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.checkpoints.transfer import build_network, transfer_weights
from nnunet_alice.cli.main import main
from nnunet_alice.errors import CheckpointError

WIDE = [32, 64, 128, 256, 320, 320]
RESENC_L = {"features_per_stage": WIDE, "n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": [1] * 5}


def filled(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """Tensors of these names and shapes, each of a number of its own, that take no room."""
    return {name: torch.tensor(float(n)).expand(shape) for n, (name, shape) in enumerate(shapes.items())}


def network_of(plans, dataset_json):
    """The network of the plans without its initialisation, which takes long."""
    with torch.device("meta"):
        return build_network(plans, "3d_fullres", dataset_json)[0]


def network_shapes(plans, dataset_json) -> dict[str, tuple]:
    return {name: tuple(tensor.shape) for name, tensor in network_of(plans, dataset_json).state_dict().items()}


def dataset(channels: int, classes: int) -> dict:
    labels = {"background": 0} | {f"organ {n}": n for n in range(1, classes)}
    return {"channel_names": {str(n): "CT" for n in range(channels)}, "labels": labels}


def carried(checkpoint, path, plans, dataset_json, **options):
    """What ``transfer`` does to a network of the plans, and the network."""
    torch.save(checkpoint, path)
    loaded = load_checkpoint(path)
    network = network_of(plans, dataset_json).to_empty(device="cpu")
    return transfer_weights(unet_weights(loaded, path), network, **options), network, loaded


@pytest.mark.slow
def test_nnssl_resenc_l(make_plans, tmp_path):
    """OpenMind: ResEnc-L, one channel, decoder of the masked autoencoder, keys in an adaptation plan."""
    plans = make_plans("residual", stages=6, **RESENC_L)
    weights = filled(network_shapes(plans, dataset(1, 1)))
    plan = {"key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem"}
    plan |= {"architecture_plans": {"arch_class_name": "ResEncL"}, "pretrain_num_input_channels": 1}
    file = {"network_weights": weights, PLAN_KEY: plan, "citations": [{"type": "Dataset", "name": "OpenMind"}]}
    transfer, network, _ = carried(file, tmp_path / "checkpoint_final.pth", plans, dataset(1, 4))
    assert transfer.share("encoder") == 1 and set(transfer.table["status"]) == {"loaded", "fresh"}
    assert set(transfer.table[transfer.table["status"] == "fresh"]["part"]) == {"head"}
    for name in ("encoder.stem.convs.0.conv.weight", "encoder.stages.5.blocks.5.conv2.conv.weight"):
        assert torch.equal(network.state_dict()[name], weights[name])


def test_nnssl_one_channel_for_four(make_plans, tmp_path):
    plans = make_plans("residual", stages=3)
    weights = filled(network_shapes(plans, dataset(1, 1)))
    file = {"network_weights": weights, PLAN_KEY: {"key_to_encoder": "encoder.stages"}}
    transfer, network, _ = carried(file, tmp_path / "c.pth", plans, dataset(4, 2))
    stem = "encoder.stem.convs.0.conv.weight"
    assert transfer.share("encoder") == 1
    assert torch.allclose(network.state_dict()[stem].sum(1, keepdim=True), weights[stem])


@pytest.mark.parametrize(("classes", "parts"), [(25, "all"), (118, "encoder")])
def test_stock_nnunet_and_totalsegmentator(make_plans, tmp_path, classes, parts):
    """A plain U-Net of six stages, as ``nnUNetTrainerNoMirroring`` saves it with its state of training."""
    plans = make_plans("plain", stages=6, features_per_stage=WIDE)
    weights = filled(network_shapes(plans, dataset(1, classes)))
    file = {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-5}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [0.9]},
        "_best_ema": 0.95,
        "current_epoch": 4000,
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset(1, classes)},
        "trainer_name": "nnUNetTrainerNoMirroring",
        "inference_allowed_mirroring_axes": None,
    }
    transfer, network, _ = carried(file, tmp_path / "c.pth", plans, dataset(1, 3), parts=parts)
    assert transfer.share("encoder") == 1
    assert transfer.share("decoder") == (1 if parts == "all" else 0) and transfer.share("head") == 0
    name = "encoder.stages.5.0.convs.1.conv.weight"
    assert torch.equal(network.state_dict()[name], weights[name])


def stu_net_base() -> dict[str, tuple]:
    dims, shapes = [32, 64, 128, 256, 512, 512], {}

    def block(name, before, after):
        shapes.update({f"{name}.conv{n}.weight": (after, before if n == 1 else after, 3, 3, 3) for n in (1, 2)})
        shapes.update({f"{name}.norm{n}.weight": (after,) for n in (1, 2)})
        shapes[f"{name}.conv3.weight"] = (after, before, 1, 1, 1)

    for stage, (before, after) in enumerate(zip([1, *dims], dims, strict=False)):
        block(f"conv_blocks_context.{stage}.0", before, after)
    for stage in range(5):
        shapes[f"upsample_layers.{stage}.conv.weight"] = (dims[4 - stage], dims[5 - stage], 1, 1, 1)
        block(f"conv_blocks_localization.{stage}.0", 2 * dims[4 - stage], dims[4 - stage])
        shapes[f"seg_outputs.{stage}.weight"] = (105, dims[4 - stage], 1, 1, 1)
    return shapes


def segresnet(filters=32) -> dict[str, tuple]:
    shapes: dict[str, tuple] = {"convInit.conv.weight": (filters, 1, 3, 3, 3)}
    for stage, blocks in enumerate((1, 2, 2, 4)):
        width = filters * 2**stage
        if stage:
            shapes[f"down_layers.{stage}.0.conv.weight"] = (width, width // 2, 3, 3, 3)
        for block in range(1, blocks + 1):
            for part in (1, 2):
                shapes[f"down_layers.{stage}.{block}.norm{part}.weight"] = (width,)
                shapes[f"down_layers.{stage}.{block}.conv{part}.conv.weight"] = (width, width, 3, 3, 3)
    return shapes


SEGRESNET_DS = {"encoder.conv_init.weight": (32, 1, 3, 3, 3), "encoder.layers.0.blocks.0.norm1.weight": (32,)}
SWIN = {
    "patch_embed.proj.weight": (48, 1, 2, 2, 2),
    "layers1.0.blocks.0.norm1.weight": (48,),
    "layers1.0.blocks.0.attn.qkv.weight": (144, 48),
}
SWIN_UNETR = {f"swinViT.{name}": shape for name, shape in SWIN.items()} | {
    "encoder1.layer.conv1.conv.weight": (48, 1, 3, 3, 3),
    "decoder5.transp_conv.conv.weight": (768, 384, 2, 2, 2),
}
GENERIC_UNET = {
    "conv_blocks_context.0.blocks.0.conv.weight": (32, 1, 3, 3, 3),
    "conv_blocks_context.5.0.blocks.0.instnorm.weight": (320,),
    "tu.0.weight": (320, 320, 2, 2, 2),
}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ({"epoch": 4000, "state_dict": filled(stu_net_base())}, "STU-Net"),
        ({"network_weights": filled(stu_net_base())}, "STU-Net"),
        ({"epoch": 1000, "state_dict": filled(GENERIC_UNET)}, "nnU-Net v1"),
        (filled(segresnet()), "SegResNet"),
        ({"model": filled(segresnet(8))}, "SegResNet"),
        ({"state_dict": filled(SEGRESNET_DS)}, "SegResNet"),
        ({"state_dict": filled(SWIN_UNETR)}, "SwinUNETR"),
        ({"state_dict": {f"module.{n}": t for n, t in filled(SWIN).items()}}, "SwinUNETR"),
        (
            {"network_weights": filled({"eva.blocks.0.attn.qkv.weight": (9, 3)}), PLAN_KEY: {"key_to_encoder": "eva"}},
            "Primus",
        ),
        ({"network_weights": filled({"encoder.eva.pos_embed": (1, 8, 3)})}, "Primus"),
    ],
)
def test_what_no_unet_can_take_is_told_in_one_sentence(file, name, tmp_path):
    torch.save(file, tmp_path / "c.pth")
    with refused(CheckpointError, path="c.pth") as caught:
        unet_weights(load_checkpoint(tmp_path / "c.pth"), tmp_path / "c.pth")
    assert name in caught.value.value and str(caught.value).count(".") <= 3


@pytest.mark.parametrize("place", ["state_dict", "model", None])
def test_unets_of_nnunets_kind_are_taken_from_where_others_put_them(make_plans, make_network, place):
    weights = make_network(make_plans()).state_dict()
    checkpoint = weights if place is None else {place: weights, "epoch": 3}
    assert set(unet_weights(checkpoint, "c.pth")) == set(unet_weights({"network_weights": weights}, "c.pth"))


def test_the_command_tells_it(tmp_path, monkeypatch, capsys):
    save_checkpoint({"state_dict": filled(GENERIC_UNET)}, tmp_path / "c.pth")
    folder = tmp_path / "Dataset004_Target"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (folder / "nnUNetPlans.json").write_text('{"configurations": {"3d_fullres": {}}}')
    (folder / "dataset.json").write_text("{}")
    assert main(["transfer", "-i", str(tmp_path / "c.pth"), "-d", "4", "-o", str(tmp_path / "o.pth")]) == 1
    assert "nnU-Net v1" in capsys.readouterr().err and not (tmp_path / "o.pth").exists()
