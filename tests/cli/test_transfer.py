"""The command transfer: checkpoint, table and words, and errors in one sentence."""

import json

import pandas as pd
import torch
from support.raw_volumes import write
from support.refused import refused
from support.small_unets import load_with_stock, source_of

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.nnssl import PLAN_KEY
from nnunet_alice.checkpoints.pretraining import pretrained_orientation
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.checkpoints.transfer import transfer_checkpoint
from nnunet_alice.cli.main import main
from nnunet_alice.errors import InputError, NotPreparedError


def test_the_command_writes_checkpoint_and_table(target_dataset, tmp_path, make_plans, make_network, capsys):
    source = make_network(make_plans("plain", 4))
    source_of(source)
    save_checkpoint({"network_weights": source.state_dict(), "trainer_name": "AliceTrainer"}, tmp_path / "in.pth")
    command = ["transfer", "-i", str(tmp_path / "in.pth"), "-d", "900", "-o", str(tmp_path / "out.pth")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "encoder.stages.0.0.convs.0.conv.weight" in printed and "of the encoder's" in printed
    table = pd.read_csv(tmp_path / "out.csv")
    assert f"{(table['status'] == 'fresh').sum()} tensors fresh" in printed
    row = table.set_index("tensor").loc["encoder.stages.0.0.convs.0.conv.weight"]
    assert row["how"] == "kernel 3x3x3 to 1x3x3, 1 to 3 input channels" and row["target_shape"] == "2x3x1x3x3"

    checkpoint = load_checkpoint(tmp_path / "out.pth")
    target = make_network(make_plans("plain", 5, anisotropic=True), 3, classes=3)
    load_with_stock(target, checkpoint, tmp_path)
    assert checkpoint[PLAN_KEY]["pretrain_num_input_channels"] == 3
    assert checkpoint["transferred_from"]["trainer_name"] == "AliceTrainer"
    assert main(command) == 0  # the same seed gives the same file, fresh tensors included
    again = load_checkpoint(tmp_path / "out.pth")["network_weights"]
    assert all(torch.equal(w, again[name]) for name, w in checkpoint["network_weights"].items())


def test_how_images_lay_goes_along_and_is_compared(target_dataset, tmp_path, make_plans, make_network, capsys):
    """A stock trainer will not compare it, so the command does."""
    raw = tmp_path / "raw" / target_dataset.name
    for channel in range(3):
        write(raw / f"x_{channel:04d}.nii.gz", turn="LPS")
    content = json.loads((target_dataset / "dataset.json").read_text())
    files = {"images": [f"x_{channel:04d}.nii.gz" for channel in range(3)], "label": "x.nii.gz"}
    content |= {"file_ending": ".nii.gz", "numTraining": 1, "dataset": {"x": files}}
    (raw / "dataset.json").write_text(json.dumps(content))
    plans = make_plans("plain", 5, anisotropic=True)
    (target_dataset / "nnUNetPlans.json").write_text(json.dumps(plans | {"image_reader_writer": "SimpleITKIO"}))
    run = {"trained": {"encoder": True, "decoder": True}, "hyper_parameters": {}}
    for letters, told in (("LPS", False), ("LAS", True)):
        content = {"network_weights": make_network(plans).state_dict(), "pretraining": run | {"orientation": letters}}
        save_checkpoint(content, tmp_path / "in.pth")
        assert main(["transfer", "-i", str(tmp_path / "in.pth"), "-d", "900", "-o", str(tmp_path / "o.pth")]) == 0
        assert (f"saw images that lie {letters}" in capsys.readouterr().out) is told
        assert pretrained_orientation(load_checkpoint(tmp_path / "o.pth")) == letters


def test_an_output_that_cannot_be_written_is_one_sentence(target_dataset, tmp_path, make_plans, make_network, capsys):
    save_checkpoint({"network_weights": make_network(make_plans()).state_dict()}, tmp_path / "in.pth")
    command = ["transfer", "-i", str(tmp_path / "in.pth"), "-d", "900", "-o"]
    (tmp_path / "full.pth").mkdir()  # no file can be put in its place
    assert main([*command, str(tmp_path / "full.pth")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "full.pth could not be written" in message
    assert not (tmp_path / "full.csv").exists(), "a table without its checkpoint"
    (tmp_path / "out.csv").mkdir()
    assert main([*command, str(tmp_path / "out.pth")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "out.csv could not be written (Is a directory)" in message
    assert not (tmp_path / "out.pth").exists(), "weights without their table"


def test_the_command_tells_errors_in_one_sentence(target_dataset, tmp_path, make_plans, make_network, capsys):
    save_checkpoint({"network_weights": make_network(make_plans("residual")).state_dict()}, tmp_path / "in.pth")
    assert main(["transfer", "-i", str(tmp_path / "in.pth"), "-d", "900", "-o", str(tmp_path / "out.pth")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "in.pth cannot go to nnUNetPlans 3d_fullres: it holds a residual" in message
    assert not (tmp_path / "out.pth").exists() and not (tmp_path / "out.csv").exists()
    arguments = {"checkpoint": tmp_path / "in.pth", "dataset": 900, "plans_name": "nnUNetPlans"}
    arguments["output"] = tmp_path / "o.pth"
    with refused(InputError, value="2d"):
        transfer_checkpoint(**arguments, configuration="2d")
    with refused(NotPreparedError, value="No", command="nnUNetv2_plan_and_preprocess -d 900"):
        transfer_checkpoint(**arguments | {"plans_name": "No"}, configuration="3d_fullres")
    with refused(InputError, path="in.pth"):
        transfer_checkpoint(**arguments | {"output": tmp_path / "in.pth"}, configuration="3d_fullres")
