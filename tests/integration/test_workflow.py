"""The whole chain as a user runs it: subprocesses of the real commands, on phantoms."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.refused import refused

from nnunet_alice.demo.budget import Budget
from nnunet_alice.demo.sources import Phantoms
from nnunet_alice.demo.workflow import Demo
from nnunet_alice.errors import AliceError

#: stock nnU-Net, ten steps long: its own 250 are minutes that would show nothing more
SHORT = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class ShortStockTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 10, 2
"""
#: a demo of the smallest size: two epochs of two iterations, one epoch of stock nnU-Net from the weights
PHANTOMS = Phantoms(unlabelled=5, training=2, test=1, spacing_mm=16.0)
SMALLEST = Budget("AliceTrainer_smoke", "ShortStockTrainer", "FineTuneTrainer_scratch_1epoch_10iterations")


def command(name: str) -> str:
    """Path of a command of this installation."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


@pytest.mark.slow
def test_demo_from_phantoms_to_dice(tmp_path, monkeypatch):
    """import, plan, anatomy, AliceTrainer, stock fine-tuning from its weights, a short run from scratch, evaluation."""
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "short.py").write_text(SHORT)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    steps = []
    demo = Demo(tmp_path / "demo", PHANTOMS, SMALLEST, steps.append)
    report = demo.run()
    assert list(report.dice) == ["pretrained", "from scratch"]
    assert all(0 <= dice <= 1 for run in report.dice.values() for dice in run.values())
    assert all(path.is_file() for path in report.pictures.values()) and list(report.seconds) == steps
    assert {"atlas", "relative position"} <= set(report.matching["matcher"])
    assert (report.matching["median_mm"] > 0).all()
    logs = sorted((demo.folder / "logs").iterdir())
    assert len(logs) == len(report.commands)
    finetuning = next(log.read_text() for log in logs if "fine-tune_pretrained" in log.name)
    assert "Loading pretrained weights" in finetuning


def test_a_failing_command_is_named_with_its_log(tmp_path):
    phantoms = Phantoms(unlabelled=1, training=1, test=1, spacing_mm=40.0)
    with refused(AliceError):
        Demo(tmp_path / "demo", phantoms, Budget(), lambda step: None).run()


HELP = """
import contextlib, io, sys
from nnunet_alice.cli.main import COMMANDS, main

for name in COMMANDS:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([name, "-h"])
    assert f"nnunet_alice {name}" in text.getvalue() and "Example: " in text.getvalue(), name
    assert "torch" not in sys.modules, name  # takes seconds
"""


def test_commands_answer_help_at_once_with_an_example():
    subprocess.run([sys.executable, "-c", HELP], check=True)
    result = subprocess.run([command("nnunet_alice"), "plan", "-h"], capture_output=True, text=True, check=True)
    assert "nnunet_alice plan" in result.stdout
