"""The whole chain as a user runs it, on real hippocampus cases, with a kill in the middle of pretraining."""

import json
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import pytest
import torch

from nnunet_alice.cli.main import main
from nnunet_alice.demo.commands import start
from nnunet_alice.discovery import package_folder
from nnunet_alice.files import read_json, write_json

NUMBER, PLANS, CONFIGURATION = "4", "AliceSmallPlans", "3d_fullres"
#: four short epochs: the run is killed once the first is saved
PRETRAINING = "AliceTrainer_4epochs_2iterations"
#: not stock nnU-Net's trainer (test_workflow.py has that): 250 steps of its SGD often end at background
FINETUNING = "FineTuneTrainer_1epoch_150iterations_AdamW_lr1e-2_noTTA_seed1"
#: of the 200 cases
CASES = 16
TIMEOUT_S = 600


class Chain:
    """Commands of this installation, with nnU-Net's folders below one folder.

    Args:
        base: folder of everything.
    """

    def __init__(self, base: Path) -> None:
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        self.raw, self.preprocessed, self.results = (base / name for name in names)
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir()
        self.log = base / "log.txt"
        own = {name: str(base / name) for name in names}
        own |= {"nnUNet_extTrainer": str(package_folder("nnunet_alice.trainers")), "nnUNet_n_proc_DA": "0"}
        self.environment = {**os.environ, **own}

    def start(self, *words: str) -> BaseProcess:
        """Start a command; its output goes to the log."""
        return start(words, self.environment, self.log)

    def run(self, *words: str) -> None:
        """Run a command to its end."""
        command = self.start(*words)
        command.join(TIMEOUT_S)
        assert command.exitcode == 0, f"{' '.join(words)}:\n{self.log.read_text()[-3000:]}"


def write_part(archive: Path, folder: Path) -> None:
    """Write a dataset of the Decathlon with the first cases of another, as links."""
    content = read_json(archive / "dataset.json")
    content["training"] = content["training"][:CASES]
    content |= {"numTraining": CASES, "test": [], "numTest": 0}
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for case in content["training"]:
        for file in case.values():
            (folder / file).symlink_to(archive / file)
    write_json(folder / "dataset.json", content)


@pytest.fixture
def chain(tmp_path, real_data) -> Chain:
    """Hippocampi converted, planned and preprocessed."""
    chain, task = Chain(tmp_path), "Task04_Hippocampus"
    write_part(real_data / task, tmp_path / "part" / task)
    chain.run("nnUNetv2_convert_MSD_dataset", "-i", str(tmp_path / "part" / task), "-np", "1")
    chain.run("nnunet_alice", "plan", "-d", NUMBER, "-pl", "AlicePlannerSmall", "-np", "1")
    return chain


def kill_when_saved(chain: Chain, folder: Path, *words: str) -> None:
    """Start a training and kill -9 it as soon as it has saved a checkpoint."""
    training = chain.start(*words)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not (folder / "checkpoint_latest.pth").is_file():
            assert training.exitcode is None and time.monotonic() < deadline, chain.log.read_text()[-3000:]
            time.sleep(0.05)
    finally:
        training.kill()
        training.join()


@pytest.mark.slow
def test_from_the_decathlons_archive_to_a_fine_tuned_model(chain, capsys):
    """convert, plan, anatomy, AliceTrainer killed and continued, inspect, fine-tuning from its weights."""
    chain.run("nnunet_alice", "anatomy", "-d", NUMBER, "-p", PLANS, "-c", CONFIGURATION, "-np", "1")
    dataset = chain.preprocessed / "Dataset004_Hippocampus"
    assert next(dataset.rglob("atlas.png")).is_file()

    model = ["-p", PLANS, "-device", "cpu"]
    pretrain = ["nnUNetv2_train", NUMBER, CONFIGURATION, "all", "-tr", PRETRAINING, *model]
    folder = chain.results / dataset.name / f"{PRETRAINING}__{PLANS}__{CONFIGURATION}" / "fold_all"
    kill_when_saved(chain, folder, *pretrain)
    assert not (folder / "checkpoint_final.pth").exists()
    killed = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    chain.run(*pretrain, "--c")
    history = pd.read_csv(folder / "metrics.csv")
    assert list(history["epoch"]) == [0, 1, 2, 3] and history["loss"].notna().all()
    assert len(killed["history"]) < 4
    final = folder / "checkpoint_final.pth"

    assert main(["inspect", str(final), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["epochs"].startswith("4 of 4") and f"{CASES} cases" in described["dataset"]

    cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "gt_segmentations").glob("*.nii.gz"))
    assert len(cases) == CASES
    write_json(dataset / "splits_final.json", [{"train": cases[:12], "val": cases[12:14]}])
    weights = ["-pretrained_weights", str(final)]
    chain.run("nnUNetv2_train", NUMBER, CONFIGURATION, "0", "-tr", FINETUNING, *model, *weights)
    assert "Starts from pretrained weights" in chain.log.read_text()
    tuned = chain.results / dataset.name / f"{FINETUNING}__{PLANS}__{CONFIGURATION}" / "fold_0"
    labels = read_json(tuned / "validation" / "summary.json")["mean"]
    assert max(label["Dice"] for label in labels.values()) > 0.3, "150 steps find one half, roughly"
