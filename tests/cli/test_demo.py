"""The command demo: the whole chain as a user runs it, and what it says where a command fails."""

import pytest
from support.own_data import dataset
from support.refused import refused

from nnunet_alice.cli import demo as command
from nnunet_alice.cli.main import main
from nnunet_alice.demo import sources
from nnunet_alice.demo.budget import Budget
from nnunet_alice.demo.sources import Phantoms
from nnunet_alice.demo.workflow import Demo, DemoReport
from nnunet_alice.errors import AliceError

#: stock nnU-Net, four steps long: its own 250 are minutes that would show nothing more
SHORT = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class ShortStockTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 4, 2
"""
#: a demo of the smallest size: two epochs of two iterations, one epoch of stock nnU-Net from the weights
PHANTOMS = Phantoms(unlabelled=5, training=2, test=1, spacing_mm=16.0)
SMALLEST = Budget(
    "AliceTrainer_smoke", "ShortStockTrainer", "FineTuneTrainer_scratch_1epoch_4iterations_noTTA", pairs=6
)


@pytest.mark.slow
def test_demo_from_phantoms_to_dice(tmp_path, monkeypatch, capsys):
    """import, plan, anatomy, AliceTrainer, stock fine-tuning from its weights, a short run from scratch, evaluation."""
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "short.py").write_text(SHORT)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    monkeypatch.setattr(command, "Budget", lambda embedding: SMALLEST)
    monkeypatch.setattr(sources, "Phantoms", lambda seed: PHANTOMS)
    reports, real = [], Demo.run
    monkeypatch.setattr(Demo, "run", lambda demo: reports.append(real(demo)) or reports[0])
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    printed, report = capsys.readouterr().out, reports[0]
    steps = [line.removeprefix("... ") for line in printed.splitlines() if line.startswith("... ")]
    assert "Dice on 1 test case that" in printed and "Shown: with 2 labelled cases" in printed
    assert list(report.dice) == ["pretrained", "from scratch"]
    assert all(0 <= dice <= 1 for run in report.dice.values() for dice in run.values())
    assert all(path.is_file() for path in report.pictures.values()) and list(report.seconds) == steps
    assert {"atlas", "relative position"} <= set(report.matching["matcher"])
    assert (report.matching["median_mm"] > 0).all()
    logs = sorted((tmp_path / "demo" / "logs").iterdir())
    assert len(logs) == len(report.commands)
    finetuning = next(log.read_text() for log in logs if "fine-tune_pretrained" in log.name)
    assert "Loading pretrained weights" in finetuning


@pytest.mark.slow
def test_a_failing_command_is_named_with_its_log(tmp_path):
    phantoms = Phantoms(unlabelled=1, training=1, test=1, spacing_mm=40.0)
    with refused(AliceError):
        Demo(tmp_path / "demo", phantoms, Budget(), lambda step: None).run()


def test_nothing_is_written_into_the_users_folder(tmp_path, capsys):
    folder = dataset(tmp_path / "Dataset001_Mine")
    assert main(["demo", "--data", str(folder), "-o", str(folder / "demo")]) == 1
    assert "name a folder elsewhere with -o" in capsys.readouterr().err and not (folder / "demo").exists()


@pytest.mark.parametrize(("dice", "words"), [(0.51, "ends 1 point of mean Dice above"), (0.47, "ends 3 points of")])
def test_the_last_sentence_counts(dice, words):
    runs = {"pretrained": {"liver": dice}, "from scratch": {"liver": 0.5}}
    report = DemoReport({}, [], dice=runs, cases=runs, labelled=1, pool=3)
    told = command._conclusion(report, own=True)
    assert words in told and "with 1 labelled case and" in told and "of 1 test case." in told
