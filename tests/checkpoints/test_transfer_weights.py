"""Transfer: every pair of networks, what each keeps, nnU-Net's own loader, the table's totals, refusals."""

import itertools
import re

import pytest
import torch
from support.refused import refused
from support.small_unets import load_with_stock, source_of

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.checkpoints.transfer import transfer_checkpoint, transfer_weights
from nnunet_alice.errors import CheckpointError, InputError

#: products by 2 and by 3 in the field with four elements, whose sum is ``^``
_TWICE, _THRICE = (0, 2, 3, 1), (0, 3, 1, 2)


def pairs_of_networks(kind: str) -> list[tuple]:
    """Kind, depths, channels and anisotropy of 16 pairs of source and target.

    Any two of source depth, target depth, source channels, target channels and kind of anisotropy (four values each)
    take all 16 pairs of values: the lines x + y, x + 2y and x + 3y of the field with four elements.
    """
    shift = 0 if kind == "plain" else 2  # other quintuples for the other family
    cases = []
    for x, y in itertools.product(range(4), repeat=2):
        flat, channels = x ^ y ^ shift, (1 + (x ^ _TWICE[y] ^ shift), 1 + (x ^ _THRICE[y]))
        cases.append((kind, (4 + x, 4 + y), channels, (bool(flat & 1), bool(flat & 2))))
    return cases


CASES = pairs_of_networks("plain") + pairs_of_networks("residual")


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_depths_channels_and_anisotropy_vary_independently(kind):
    factors = zip(*((*depths, *channels, flat) for _, depths, channels, flat in pairs_of_networks(kind)), strict=True)
    for one, other in itertools.combinations(factors, 2):
        assert len(set(zip(one, other, strict=True))) == 16


def centre(image):
    """Without the border that zero padding reaches."""
    return image[..., 3:-3, 3:-3, 3:-3]


def features(network, image):
    """Last decoder features (before the segmentation layer) and the encoder's outputs."""
    kept = []
    hook = network.decoder.stages[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    skips = network.encoder(image)
    network.decoder(skips)
    hook.remove()
    return kept[0], skips


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "depths", "channels", "anisotropic"), CASES)
def test_every_pair_is_accepted_by_stock_nnunet(
    kind, depths, channels, anisotropic, make_plans, make_network, tmp_path
):
    blocks = "n_conv_per_stage" if kind == "plain" else "n_blocks_per_stage"
    source_plans, target_plans = (  # one block a stage: building the networks takes most of the time
        make_plans(kind, n, a, width=1, **{blocks: [1] * n, "n_conv_per_stage_decoder": [1] * (n - 1)})
        for n, a in zip(depths, anisotropic, strict=True)
    )
    source = source_of(make_network(source_plans, channels[0]))
    target = make_network(target_plans, channels[1], classes=5)
    before = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    result = transfer_weights(source, target)
    table = result.table.set_index("tensor")

    fresh_target = make_network(target_plans, channels[1], classes=5)
    written = target.state_dict()
    load_with_stock(fresh_target, {"network_weights": written}, tmp_path)
    fine_tuned = fresh_target.state_dict()
    for name, weight in fine_tuned.items():
        assert ".seg_layers." in name or torch.equal(weight, written[name])
        if name.startswith("encoder."):
            assert torch.equal(weight, fine_tuned["decoder." + name])

    # the table, recomputed: which tensors exist on both sides, how many elements they have
    shift = depths[0] - depths[1]
    carried = 0
    for name, parameter in target.named_parameters():
        twin = re.sub(r"(?<=^decoder\.)(\w+)\.(\d+)", lambda m: f"{m.group(1)}.{int(m.group(2)) + shift}", name)
        row = table.loc[name]
        if ".seg_layers." in name or twin not in source:
            assert row["status"] == "fresh" and torch.equal(parameter, before[name])
        else:
            assert row["status"] == ("loaded" if source[twin].shape == parameter.shape else "adapted"), name
            assert (row["how"] == "") == (row["status"] == "loaded")
            assert row["status"] == "adapted" or torch.equal(parameter, source[twin])
            assert not torch.equal(parameter, before[name])
            carried += parameter.numel()
    assert table["carried"].sum() == carried
    assert table["parameters"].sum() == sum(p.numel() for p in target.parameters())
    assert len(table) == len(list(target.parameters())) and set(table["status"]) <= {"loaded", "adapted", "fresh"}
    assert result.share() == carried / sum(p.numel() for p in target.parameters())


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_equal_plans_give_the_same_function(kind, make_plans, make_network):
    plans = make_plans(kind, 4, anisotropic=True)
    network, target = make_network(plans, 2), make_network(plans, 2)
    result = transfer_weights(source_of(network), target)
    image = torch.rand(1, 2, 16, 32, 32)
    assert torch.equal(features(network, image)[0], features(target, image)[0])
    assert result.share("encoder") == result.share("decoder") == 1 and result.share("head") == 0


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("channels", [(1, 3), (3, 1), (2, 4)])
def test_equal_channels_give_the_same_features(kind, channels, make_plans, make_network):
    plans = make_plans(kind, 4)
    network, target = (make_network(plans, n) for n in channels)
    transfer_weights(source_of(network), target)
    image = torch.rand(1, 1, 16, 16, 16)
    old, new = (
        features(net, image.expand(-1, n, -1, -1, -1))[0] for net, n in zip((network, target), channels, strict=True)
    )
    assert torch.allclose(old, new, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("anisotropic", [(False, True), (True, False)])
@pytest.mark.parametrize("channels", [(1, 3), (3, 2)])
def test_the_stem_answers_constant_images_as_before(kind, anisotropic, channels, make_plans, make_network):
    """Other kernel and other channels at once, in the networks themselves."""
    network, target = (make_network(make_plans(kind, 4, a), n) for a, n in zip(anisotropic, channels, strict=True))
    transfer_weights(source_of(network), target)
    name = "encoder.stem.convs.0.conv" if kind == "residual" else "encoder.stages.0.0.convs.0.conv"
    stems = [net.get_submodule(name) for net in (network, target)]
    assert stems[0].kernel_size != stems[1].kernel_size
    old, new = (centre(stem(torch.full((1, n, 9, 9, 9), 0.7))) for stem, n in zip(stems, channels, strict=True))
    assert torch.allclose(old, new, atol=1e-5) and old.std() > 0.01


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("anisotropic", [(False, True), (True, False)])
def test_upsampling_keeps_its_mean_over_each_voxel(kind, anisotropic, make_plans, make_network):
    """Transposed convolutions of another stride, in the networks themselves."""
    network, target = (make_network(make_plans(kind, 4, a)) for a in anisotropic)
    transfer_weights(source_of(network), target)
    layers = [net.decoder.transpconvs[-1] for net in (network, target)]
    assert {layer.stride for layer in layers} == {(1, 2, 2), (2, 2, 2)}
    image = torch.rand(1, layers[0].in_channels, 4, 4, 4)
    old, new = (torch.nn.functional.interpolate(layer(image), size=(4, 4, 4), mode="area") for layer in layers)
    assert torch.allclose(old, new, atol=1e-5) and old.std() > 0.01


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_wider_networks_compute_the_old_features_beside_new_ones(kind, make_plans, make_network):
    network, target = make_network(make_plans(kind, 4, width=2)), make_network(make_plans(kind, 4, width=3))
    result = transfer_weights(source_of(network), target)
    image = torch.rand(1, 1, 16, 16, 16)
    old, new = features(network, image), features(target, image)
    assert torch.allclose(old[0], new[0][:, :2], atol=1e-4)
    for before, after in zip(old[1], new[1], strict=True):
        assert torch.allclose(before, after[:, : before.shape[1]], atol=1e-4)
    encoder = [p for name, p in network.named_parameters() if name.startswith("encoder.")]
    assert result.table.query("part == 'encoder'")["carried"].sum() == sum(p.numel() for p in encoder)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("depths", [(4, 5), (5, 4)])
def test_other_depths_keep_the_shared_encoder_stages(kind, depths, make_plans, make_network):
    network, target = (make_network(make_plans(kind, n)) for n in depths)
    transfer_weights(source_of(network), target)
    image = torch.rand(1, 1, 32, 32, 32)
    old, new = features(network, image)[1], features(target, image)[1]
    assert all(torch.equal(a, b) for a, b in zip(old[: min(depths)], new[: min(depths)], strict=True))


def test_more_and_fewer_blocks_and_missing_projections(make_plans, make_network):
    source = source_of(make_network(make_plans("residual", 4, n_blocks_per_stage=[1, 3, 2, 2])))
    target = make_network(make_plans("residual", 4, n_blocks_per_stage=[2, 2, 2, 2], features_per_stage=[2, 2, 4, 8]))
    table = transfer_weights(source, target).table.set_index("tensor")
    assert table.loc["encoder.stages.0.blocks.1.conv1.conv.weight", "how"] == "not in the source"
    assert table.loc["encoder.stages.1.blocks.1.conv1.conv.weight", "how"] == "fewer features than the source"
    assert table.loc["encoder.stages.0.blocks.0.conv1.conv.weight", "status"] == "loaded"


def test_a_projection_is_found_before_and_behind_pooling(make_plans, make_network):
    strides = [[1] * 3, [2] * 3, [1] * 3, [2] * 3]
    source = source_of(make_network(make_plans("residual", 4)))
    target = make_network(make_plans("residual", 4, strides=strides))
    table = transfer_weights(source, target).table.set_index("tensor")
    row = table.loc["encoder.stages.2.blocks.0.skip.0.conv.weight"]
    assert row["status"] == "loaded" and row["source_tensor"] == "encoder.stages.2.blocks.0.skip.1.conv.weight"


def test_2d_and_3d(make_plans, make_network):
    for dims in ((2, 3), (3, 2)):
        source = source_of(make_network(make_plans(dim=dims[0])))
        result = transfer_weights(source, make_network(make_plans(dim=dims[1])))
        assert result.share("encoder") == 1 and f"{dims[0]}D to {dims[1]}D" in result.table["how"].str.cat()


def test_encoder_only(make_plans, make_network):
    plans = make_plans()
    target = make_network(plans)
    decoder = {name: w.clone() for name, w in target.decoder.stages.state_dict().items()}
    result = transfer_weights(source_of(make_network(plans)), target, parts="encoder")
    assert result.share("encoder") == 1 and result.share("decoder") == 0
    assert all(torch.equal(w, decoder[name]) for name, w in target.decoder.stages.state_dict().items())
    with refused(InputError, option="--parts", value="stem"):
        transfer_weights({}, target, parts="stem")


def test_cascade_ignores_the_previous_stage_at_first(make_plans, make_network):
    plans = make_plans()
    network, target = make_network(plans, 1), make_network(plans, 3)
    transfer_weights(source_of(network), target, image_channels=1)
    image, prior = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 2, 16, 16, 16)
    assert torch.allclose(features(network, image)[0], features(target, torch.cat((image, prior), 1))[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_cascade_of_as_many_channels_ignores_the_previous_stage_too(kind, make_plans, make_network):
    plans = make_plans(kind)
    network, target = make_network(plans, 3), make_network(plans, 3)
    result = transfer_weights(source_of(network), target, image_channels=1)
    image, prior = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 2, 16, 16, 16)
    old = features(network, image.expand(-1, 3, -1, -1, -1))[0]
    assert torch.allclose(old, features(target, torch.cat((image, prior), 1))[0], atol=1e-4)
    (stem,) = result.table[result.table["how"].str.contains("more of zeros")].to_dict("records")
    assert stem["status"] == "adapted" and stem["carried"] == stem["parameters"] // 3


@pytest.mark.parametrize("kinds", [("plain", "residual"), ("residual", "plain")])
def test_other_families_are_refused_and_nothing_changes(kinds, make_plans, make_network):
    source, target = source_of(make_network(make_plans(kinds[0]))), make_network(make_plans(kinds[1]))
    before = {name: w.clone() for name, w in target.state_dict().items()}
    with refused(CheckpointError, value=f"{kinds[0]} encoder"):
        transfer_weights(source, target)
    assert all(torch.equal(w, before[name]) for name, w in target.state_dict().items())


def test_nothing_that_fits_and_nan_are_errors(make_plans, make_network):
    source, target = source_of(make_network(make_plans(width=4))), make_network(make_plans(width=2))
    before = {name: w.clone() for name, w in target.state_dict().items()}
    with refused(CheckpointError):
        transfer_weights(source, target)
    bad = source_of(make_network(make_plans(width=2)))
    bad["encoder.stages.1.0.convs.0.conv.bias"][0] = float("nan")
    with refused(CheckpointError, value="encoder.stages.1.0.convs.0.conv.bias"):
        transfer_weights(bad, target)
    with refused(InputError, value=None):
        transfer_weights(bad, torch.nn.Linear(2, 2))
    assert all(torch.equal(w, before[name]) for name, w in target.state_dict().items())


def test_the_teachers_weights_go_where_the_students_would(target_dataset, tmp_path, make_plans, make_network):
    student, teacher = (make_network(make_plans("plain", 4)) for _ in range(2))
    source_of(teacher)
    state = {f"teacher.backbone.network.{name}": value for name, value in teacher.state_dict().items()}
    save_checkpoint({"network_weights": student.state_dict(), "model_state": state}, tmp_path / "in.pth")
    save_checkpoint({"network_weights": teacher.state_dict()}, tmp_path / "teacher.pth")
    transfer_checkpoint(tmp_path / "in.pth", "900", output=tmp_path / "one.pth", weights="teacher")
    transfer_checkpoint(tmp_path / "teacher.pth", "900", output=tmp_path / "two.pth")
    one, two = (load_checkpoint(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert all(torch.equal(value, two["network_weights"][name]) for name, value in one["network_weights"].items())
    assert one["transferred_from"]["weights"] == "teacher" and two["transferred_from"]["weights"] == "student"


def test_a_decoder_that_was_not_trained_is_not_told_as_carried(
    target_dataset, tmp_path, make_plans, make_network, capsys
):
    """Its initial values go along, as they are as good as any."""
    source = make_network(make_plans("plain", 5, anisotropic=True))
    weights = source_of(source)
    for aligned in (False, True):
        run = {"trained": {"encoder": True, "decoder": False}, "hyper_parameters": {"alignment": aligned}}
        save_checkpoint({"network_weights": source.state_dict(), "pretraining": run}, tmp_path / "in.pth")
        result = transfer_checkpoint(tmp_path / "in.pth", 900, output=tmp_path / "out.pth")
        decoder = result.table[result.table["part"] == "decoder"]
        first = decoder["tensor"].str.contains(r"decoder\.(?:stages|transpconvs)\.0\.")
        assert ((decoder["status"] == "loaded") == (first & aligned)).all() and result.share("encoder") > 0.9
        assert decoder.loc[decoder["status"] == "fresh", "how"].str.startswith("not trained in the source").all()
        moved = load_checkpoint(tmp_path / "out.pth")["network_weights"]
        name = "decoder.stages.1.convs.0.conv.weight"
        assert torch.equal(moved[name], weights[name])


def test_a_killed_transfer_leaves_no_table_of_other_weights(
    target_dataset, tmp_path, make_plans, make_network, monkeypatch
):
    save_checkpoint({"network_weights": make_network(make_plans()).state_dict()}, tmp_path / "in.pth")
    arguments = {"checkpoint": tmp_path / "in.pth", "dataset": 900, "output": tmp_path / "out.pth"}
    transfer_checkpoint(**arguments)

    def killed(content, path):
        save_checkpoint(content, path)
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_alice.checkpoints.transfer.save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        transfer_checkpoint(**arguments)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(("entry", "share"), [({"channel_names": {"0": "CT"}}, 1), ({}, 0)])
def test_a_cascade_is_known_by_the_dataset_of_its_training(
    target_dataset, tmp_path, make_plans, make_network, entry, share
):
    """Trained with one image and two one-hot channels, for a target of three images."""
    source = make_network(make_plans("plain", 5, anisotropic=True), 3)
    weights = source_of(source)
    save_checkpoint({"network_weights": source.state_dict(), "init_args": {"dataset_json": entry}}, tmp_path / "i.pth")
    transfer_checkpoint(tmp_path / "i.pth", 900, output=tmp_path / "o.pth")
    stem = "encoder.stages.0.0.convs.0.conv.weight"
    moved = load_checkpoint(tmp_path / "o.pth")["network_weights"][stem]
    expected = weights[stem][:, :1].expand(-1, 3, -1, -1, -1) / 3 if share else weights[stem]
    assert torch.allclose(moved, expected)
