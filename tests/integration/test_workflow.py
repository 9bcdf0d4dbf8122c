"""The whole chain as a user runs it: subprocesses of the real commands, on phantoms."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_alice.demo import Demo, DemoSize

#: a demo of the smallest size: two epochs of two iterations, one epoch of stock nnU-Net from the weights; the run from
#: scratch is short, as stock's 250 steps are minutes that would show nothing more
SMALLEST = DemoSize(
    unlabelled=5,
    training=2,
    test=1,
    spacing_mm=16.0,
    pretraining="AliceTrainer_smoke",
    finetuning="nnUNetTrainer_1epoch",
    scratch="FineTuneTrainer_scratch_1epoch_10iterations",
)


def command(name: str) -> str:
    """Path of a command of this installation."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


@pytest.mark.slow
def test_demo_from_phantoms_to_dice(tmp_path):
    """import, plan, anatomy, AliceTrainer, stock fine-tuning from its weights, a short run from scratch, evaluation."""
    steps = []
    demo = Demo(tmp_path / "demo", SMALLEST, 0, steps.append)
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
    from nnunet_alice.errors import AliceError

    demo = Demo(tmp_path / "demo", DemoSize(unlabelled=1, training=1, test=1, spacing_mm=40.0), 0, lambda step: None)
    with pytest.raises(AliceError, match=r"failed.*see .*logs"):
        demo.run()


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
