"""The whole chain as a user runs it: subprocesses of the real commands, on phantoms and on real hippocampus scans."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nnunet_alice.demo import Demo, DemoSize
from nnunet_alice.discovery import package_folder

#: a demo of the smallest size: two epochs of two iterations, one epoch of fine-tuning
SMALLEST = DemoSize(
    unlabelled=5,
    training=2,
    test=1,
    spacing_mm=16.0,
    pretraining="AliceTrainer_smoke",
    finetuning="nnUNetTrainer_1epoch",
)


def command(name: str) -> str:
    """Path of a command of this installation."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


@pytest.fixture
def environment(tmp_path):
    """nnU-Net's folders below ``tmp_path``, two processes at most."""
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir()
    trainers = str(package_folder("nnunet_alice.trainers"))
    return {**os.environ, **folders, "nnUNet_extTrainer": trainers, "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0"}


def run(environment, *words, check=True):
    """Run a command; its output is shown by pytest when the test fails."""
    result = subprocess.run([command(words[0]), *words[1:]], env=environment, capture_output=True, text=True)
    print(result.stdout[-2000:], result.stderr[-2000:])
    assert not check or result.returncode == 0, words
    return result


def test_demo_from_phantoms_to_dice(tmp_path):
    """import, plan, anatomy, AliceTrainer, stock fine-tuning with and without weights, prediction, evaluation."""
    steps = []
    demo = Demo(tmp_path / "demo", SMALLEST, 0, steps.append)
    report = demo.run()
    assert list(report.dice) == ["pretrained", "from scratch"]
    assert all(0 <= dice <= 1 for run in report.dice.values() for dice in run.values())
    assert all(path.is_file() for path in report.pictures.values()) and list(report.seconds) == steps
    logs = sorted((demo.folder / "logs").iterdir())
    assert len(logs) == len(report.commands)
    finetuning = next(log.read_text() for log in logs if "fine-tune_pretrained" in log.name)
    assert "Loading pretrained weights" in finetuning


def start_pretraining(environment, *words):
    return subprocess.Popen(
        [command("nnUNetv2_train"), "4", "3d_fullres", "all", *words, "-device", "cpu"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_hippocampus_pretrain_kill_continue_and_finetune(real_data, environment, tmp_path):
    """200 real scans: nnU-Net's own conversion and planning, our pretraining, kill -9, --c, stock fine-tuning."""
    run(environment, "nnUNetv2_convert_MSD_dataset", "-i", str(real_data / "Task04_Hippocampus"), "-np", "2")
    run(environment, "nnunet_alice", "plan", "-d", "4", "-pl", "AlicePlannerSmall", "-np", "2")
    run(environment, "nnunet_alice", "anatomy", "-d", "4", "-p", "AliceSmallPlans", "-c", "3d_fullres", "-np", "2")
    trainer = ("-tr", "AliceTrainer_smoke", "-p", "AliceSmallPlans")
    folder = tmp_path / "results" / "Dataset004_Hippocampus" / "AliceTrainer_smoke__AliceSmallPlans__3d_fullres"
    killed = start_pretraining(environment, *trainer)
    try:
        deadline = time.time() + 300
        while not list(folder.glob("fold_all/metrics.csv")) and killed.poll() is None and time.time() < deadline:
            time.sleep(0.2)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    run(environment, "nnUNetv2_train", "4", "3d_fullres", "all", *trainer, "-device", "cpu", "--c")
    checkpoint = folder / "fold_all" / "checkpoint_final.pth"
    inspected = json.loads(run(environment, "nnunet_alice", "inspect", str(checkpoint), "--json").stdout)
    assert inspected["epochs"].startswith("2 of 2") and "200 cases" in inspected["dataset"]
    splits = tmp_path / "preprocessed" / "Dataset004_Hippocampus" / "splits_final.json"
    cases = sorted(path.name[:-12] for path in (tmp_path / "raw").glob("*/imagesTr/*_0000.nii.gz"))
    splits.write_text(json.dumps([{"train": cases[:4], "val": cases[4:6]}]))
    weights = ("-p", "AliceSmallPlans", "-pretrained_weights", str(checkpoint), "-tr", "nnUNetTrainer_1epoch")
    run(environment, "nnUNetv2_train", "4", "3d_fullres", "0", *weights, "-device", "cpu")
    final = tmp_path / "results" / "Dataset004_Hippocampus" / "nnUNetTrainer_1epoch__AliceSmallPlans__3d_fullres"
    assert torch.load(final / "fold_0" / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 1
    assert (
        0 <= json.loads((final / "fold_0" / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"] <= 1
    )


def test_a_failing_command_is_named_with_its_log(tmp_path):
    from nnunet_alice.errors import AliceError

    demo = Demo(tmp_path / "demo", DemoSize(unlabelled=1, training=1, test=1, spacing_mm=40.0), 0, lambda step: None)
    with pytest.raises(AliceError, match=r"failed.*see .*logs"):
        demo.run()


def test_commands_answer_help_at_once_with_an_example():
    from nnunet_alice.cli.main import COMMANDS

    for name in COMMANDS:
        result = subprocess.run([command("nnunet_alice"), name, "-h"], capture_output=True, text=True, check=True)
        assert f"nnunet_alice {name}" in result.stdout and "Example: " in result.stdout
