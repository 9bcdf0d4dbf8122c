"""The command train: words are nnU-Net's own, and what cannot work is one sentence."""

import pytest
import torch
from support.launched import COMMAND

from nnunet_alice.cli.main import main


def test_one_process_is_nnunets_own_command(asked):
    assert main(["train", *COMMAND, "-device", "cpu", "--c"]) == 0
    assert asked["run"] == (*COMMAND[:3], "AliceTrainer", "SomePlans", 1, torch.device("cpu"))
    assert asked["load"] == (True, False, None)
    assert asked["trainer"].device == torch.device("cuda", 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-num_gpus", "2", "-device", "cpu"], "-num_gpus"),
        (["-device", "mps"], "not mps"),
        (["-device", "cuda"], "has 1 GPU"),
    ],
)
def test_what_cannot_work_is_one_sentence(asked, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    assert main(["train", *COMMAND, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_misspelled_trainer_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_extTrainer", "")
    assert main(["train", "900", "3d_fullres", "all", "-tr", "AliceTrainr", "-p", "SomePlans", "-device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "trainers --list" in printed.err and "Traceback" not in printed.err
