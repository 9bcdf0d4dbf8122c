"""``nnunet_alice.train`` under torchrun: two machines of one process each, one of which is killed and started again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import find_free_network_port
from support.gloo_ranks import needs_distributed
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
from nnunet_alice.dataset import PreprocessedDataset

pytestmark = [needs_distributed, pytest.mark.slow]

TRAINER = '''
import os
import time
from pathlib import Path

from nnunet_alice.trainers.alice import AliceTrainer
from nnunet_alice.training.settings import changed


class AliceTrainer_killed(AliceTrainer):
    """The second rank ends its own process in the second epoch, unless that has happened before; no pictures."""

    settings = changed(
        AliceTrainer.settings,
        {
            **{"run.epochs": 2, "run.iterations": 2, "method.retrieval_candidates": 2, "method.attention_heads": 2},
            **{"method.hidden_dim": 16, "method.bottleneck_dim": 8, "method.prototypes": 16},
        },
    )

    _draws = False

    def on_train_epoch_start(self):
        marker = Path(os.environ["MARKER"])
        if self.rank == 1 and self.current_epoch == 1 and not marker.exists():
            while not Path(self.output_folder, "checkpoint_latest.pth").exists():  # the first rank writes it
                time.sleep(0.1)
            marker.touch()
            os.kill(os.getpid(), 9)
        super().on_train_epoch_start()
'''


def start(folder: Path, marker: Path, *torchrun: str) -> subprocess.Popen:
    """A torchrun in the folders of ``folder``; its results go to a folder named as the marker."""
    results = folder / f"results_{marker.name}"
    environment = os.environ | {
        "nnUNet_results": str(results),
        "nnUNet_extTrainer": str(folder / "trainers"),
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "1",
        "LOGLEVEL": "INFO",  # torchrun then says why it starts processes again
        "MARKER": str(marker),
    }
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "nnunet_alice.train", "900"]
    command += ["3d_fullres", "all", "-tr", "AliceTrainer_killed", "-p", PLANS, "-device", "cpu"]
    log = (folder / f"{marker.name}.log").open("a")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def outcome(folder: Path, marker: Path, *processes: subprocess.Popen) -> tuple[dict, list[dict]]:
    """Final checkpoint and history of a run when all its processes have ended well."""
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.terminate()  # torchrun then ends its workers, too
    log = (folder / f"{marker.name}.log").read_text().splitlines()
    telling = [line[:200] for line in log if re.search(r"Error|exitcode|orker group|new nodes|signal", line)]
    assert codes == [0] * len(processes), "\n".join(telling)
    (run,) = folder.glob(f"results_{marker.name}/{DATASET}/AliceTrainer_killed*/fold_all")
    assert training_log(run).count(": Epoch 0") == 1, "it began again from nothing"
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in finished_rows(run)]
    return torch.load(run / "checkpoint_final.pth", weights_only=True), rows


def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_had_happened(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    write_run(tmp_path / "preprocessed", phantom_images(3), batch_size=2)
    prepare_atlas(PreprocessedDataset.find(DATASET, PLANS, "3d_fullres"), 1)
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "killed.py").write_text(TRAINER)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.touch()
    machines = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=test")
    address = f"localhost:{find_free_network_port()}"
    both = [start(tmp_path, killed, *machines, f"--rdzv-endpoint={address}") for _ in range(2)]
    found = outcome(tmp_path, killed, *both)
    expected = outcome(tmp_path, whole, start(tmp_path, whole, "--standalone", "--nproc-per-node=2"))
    assert killed.exists()
    assert found[1] == expected[1] and len(found[1]) == 2
    assert same_content(found[0]["network_weights"], expected[0]["network_weights"])
