"""``nnunet_alice.train`` under torchrun: a process is killed and started again, on one machine and on one of two."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import find_free_network_port
from support.gloo_ranks import needs_distributed
from support.labelled_runs import DATASET as LABELLED
from support.labelled_runs import PLANS as LABELLED_PLANS
from support.labelled_runs import make_finetuner, write_labelled, write_splits
from support.pretraining_runs import (
    DATASET,
    PLANS,
    finished_rows,
    phantom_images,
    same_content,
    training_log,
    write_run,
)
from support.small_datasets import set_folders

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.checkpoints.saving import save_checkpoint
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.trainers.finetuning import FineTuneTrainer

pytestmark = [needs_distributed, pytest.mark.slow]

TRAINERS = '''
import os
import time
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnunet_alice.trainers.alice import AliceTrainer
from nnunet_alice.trainers.finetuning import FineTuneTrainer
from nnunet_alice.training.settings import changed

LENGTH = {"run.epochs": 2, "run.iterations": 2}


class Killed:
    """The second rank ends its own process in the second epoch, unless that has happened before."""

    def on_train_epoch_start(self):
        marker = Path(os.environ["MARKER"])
        if dist.get_rank() == 1 and self.current_epoch == 1 and not marker.exists():
            while not Path(self.output_folder, "checkpoint_latest.pth").exists():  # the first rank writes it
                time.sleep(0.1)
            marker.touch()
            os.kill(os.getpid(), 9)
        super().on_train_epoch_start()


class AliceTrainer_killed(Killed, AliceTrainer):
    settings = changed(
        AliceTrainer.settings,
        {
            **LENGTH,
            **{"method.retrieval_candidates": 2, "method.attention_heads": 2},
            **{"method.hidden_dim": 16, "method.bottleneck_dim": 8, "method.prototypes": 16},
        },
    )

    _draws = False


class FineTuneTrainer_killed(Killed, FineTuneTrainer):
    settings = changed(FineTuneTrainer.settings, LENGTH)

    def initialize(self):
        self.save_every = 1
        super().initialize()


class nnUNetTrainer_killed(Killed, nnUNetTrainer):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.save_every = 2, 2, 1, 1
        super().initialize()
'''


ALICE = ["900", "3d_fullres", "all", "-tr", "AliceTrainer_killed", "-p", PLANS]


def start(folder: Path, marker: Path, arguments: list[str], *torchrun: str) -> subprocess.Popen:
    """A torchrun in the folders of ``folder``; its results go to a folder named as the marker."""
    environment = os.environ | {
        "nnUNet_results": str(results(folder, marker)),
        "nnUNet_extTrainer": str(folder / "trainers"),
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "1",
        "LOGLEVEL": "INFO",  # torchrun then says why it starts processes again
        "MARKER": str(marker),
    }
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "nnunet_alice.train"]
    log = (folder / f"{marker.name}.log").open("a")
    return subprocess.Popen(
        [*command, *arguments, "-device", "cpu"], env=environment, stdout=log, stderr=subprocess.STDOUT
    )


def results(folder: Path, marker: Path) -> Path:
    return folder / f"results_{marker.name}"


def finished(folder: Path, marker: Path, *processes: subprocess.Popen) -> Path:
    """Folder of a run whose processes have all ended well, and which began from nothing once."""
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.terminate()  # torchrun then ends its workers, too
    log = (folder / f"{marker.name}.log").read_text().splitlines()
    telling = [line[:200] for line in log if re.search(r"Error|exitcode|orker group|new nodes|signal", line)]
    assert codes == [0] * len(processes), "\n".join(telling)
    (run,) = results(folder, marker).glob("*/*/fold_*")
    assert training_log(run).count(": Epoch 0") == 1, "it began again from nothing"
    return run


def outcome(run: Path) -> tuple[dict, list[dict]]:
    """Final weights and history of a pretraining."""
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in finished_rows(run)]
    return torch.load(run / "checkpoint_final.pth", weights_only=True)["network_weights"], rows


@pytest.fixture
def folders(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "killed.py").write_text(TRAINERS)
    return tmp_path


def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_had_happened(folders):
    write_run(folders / "preprocessed", phantom_images(3), batch_size=2)
    prepare_atlas(PreprocessedDataset.find(DATASET, PLANS, "3d_fullres"), 1)
    whole, killed = folders / "whole", folders / "killed"
    whole.touch()
    machines = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=test")
    endpoint = f"--rdzv-endpoint=localhost:{find_free_network_port()}"
    both = [start(folders, killed, ALICE, *machines, endpoint) for _ in range(2)]
    weights, rows = outcome(finished(folders, killed, *both))
    alone = start(folders, whole, ALICE, "--standalone", "--nproc-per-node=2")
    expected, expected_rows = outcome(finished(folders, whole, alone))
    assert killed.exists()
    assert rows == expected_rows and len(rows) == 2
    assert same_content(weights, expected)


def test_stock_training_and_fine_tuning_go_on_after_a_killed_process_and_validate(folders):
    dataset = write_labelled(folders / "preprocessed", 4)
    write_splits(dataset, (["case00", "case01", "case02"], ["case03"]))
    pretrained = make_finetuner(FineTuneTrainer, dataset)
    pretrained.initialize()
    save_checkpoint({"network_weights": pretrained.network.state_dict()}, folders / "weights.pth")
    given = {
        "nnUNetTrainer_killed": [],
        "FineTuneTrainer_killed": ["-pretrained_weights", str(folders / "weights.pth")],
    }
    started = {}
    for trainer, weights in given.items():
        arguments = [LABELLED, "3d_fullres", "0", "-tr", trainer, "-p", LABELLED_PLANS, *weights]
        machine = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
        started[trainer] = start(folders, folders / trainer, arguments, *machine)
    for trainer, torchrun in started.items():
        run = finished(folders, folders / trainer, torchrun)
        assert (folders / trainer).exists()
        assert training_log(run).count(": Epoch 1") >= 1
        assert (run / "checkpoint_final.pth").is_file() and (run / "validation" / "summary.json").is_file()
