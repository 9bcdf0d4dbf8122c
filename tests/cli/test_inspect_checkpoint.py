"""The command inspect."""

import json

from nnunet_alice.cli.main import main


def test_inspect_prints_everything(checkpoint, tmp_path, capsys):
    assert main(["inspect", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    for words in ("Alice (AliceTrainer", "3 of 3", "2 cases", "Dataset900_Chest", "atlas"):
        assert words in printed
    assert f"-pretrained_weights {checkpoint}" in printed
    assert main(["inspect", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"].startswith("3 of 3")


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    (tmp_path / "c.pth").write_bytes(b"nothing")
    assert main(["inspect", str(tmp_path / "c.pth")]) == 1
    message = capsys.readouterr().err
    assert str(tmp_path / "c.pth") in message and message.count("\n") == 1
