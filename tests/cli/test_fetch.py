"""The command fetch: plans for a target, a file for stock nnU-Net, and how images lie."""

import json

import pytest
import torch
from support.raw_volumes import write

from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.cli.main import main
from nnunet_alice.publishing.card import CardText
from nnunet_alice.publishing.publish import publish


def test_command_gives_plans_and_a_pth(published, tmp_path, monkeypatch, capsys):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw = tmp_path / "raw" / "Dataset004_Target"
    raw.mkdir(parents=True)
    content = {"channel_names": {"0": "noNorm"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    content |= {"numTraining": 1, "dataset": {"x": {"images": ["x_0000.nii.gz"], "label": "x.nii.gz"}}}
    (raw / "dataset.json").write_text(json.dumps(content | {"overwrite_image_reader_writer": "SimpleITKIO"}))
    (tmp_path / "preprocessed" / raw.name).mkdir(parents=True)
    pth = tmp_path / "stock.pth"
    assert main(["fetch", str(published.folder), "-d", "4", "--pth", str(pth)]) == 0
    printed = capsys.readouterr().out
    name = f"fetched_{published.checksum[:8]}"
    plans = json.loads((tmp_path / "preprocessed" / raw.name / f"{name}.json").read_text())
    assert (plans["dataset_name"], plans["plans_name"]) == (raw.name, name)
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == f"{name}_3d_fullres"
    assert f"nnUNetv2_train 4 3d_fullres 0 -p {name} -pretrained_weights {pth}" in printed
    stock = torch.load(pth, weights_only=True)
    assert stock["network_weights"].keys() == load_checkpoint(published.folder)["network_weights"].keys()
    (raw / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "T1", "1": "T2"}}))
    assert main(["fetch", str(published.folder), "-d", "4"]) == 1
    assert "transfer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trained", "reader", "told"),
    [("LPS", "SimpleITKIO", False), ("LAS", "SimpleITKIO", True), ("RAS", "SimpleITKIOWithReorient", False)],
)
def test_how_the_images_of_the_model_lay_is_compared(checkpoint, tmp_path, monkeypatch, capsys, trained, reader, told):
    """nnU-Net turns a target to RAS itself; to anything else it cannot, and that is said."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    content = load_checkpoint(checkpoint)
    content["pretraining"]["orientation"] = trained
    save_checkpoint(content, tmp_path / "lying.pth")
    published = publish(tmp_path / "lying.pth", tmp_path / "published", CardText("x", "cc-by-4.0"))
    raw = tmp_path / "raw" / "Dataset004_Target"
    write(raw / "x_0000.nii.gz", turn="LPS")
    (tmp_path / "preprocessed" / raw.name).mkdir(parents=True)
    content = {"channel_names": {"0": "noNorm"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    content |= {"numTraining": 1, "dataset": {"x": {"images": ["x_0000.nii.gz"], "label": "x.nii.gz"}}}
    (raw / "dataset.json").write_text(json.dumps(content | {"overwrite_image_reader_writer": "SimpleITKIO"}))
    assert main(["fetch", str(published.folder), "-d", "4"]) == 0
    assert (f"saw images that lie {trained}" in capsys.readouterr().out) is told
    plans = next((tmp_path / "preprocessed" / raw.name).glob("fetched_*.json"))
    assert json.loads(plans.read_text())["image_reader_writer"] == reader
