"""nnU-Net's training with nothing trained: what it is asked to do."""

from pathlib import Path

import pytest
import torch
from nnunetv2.run import run_training as nnunet

COMMAND = ["900", "3d_fullres", "all", "-tr", "AliceTrainer", "-p", "SomePlans"]


class Trainer:
    """Stands for nnU-Net's; says what is asked of it."""

    def __init__(self, folder, calls) -> None:
        self.output_folder, self.device, self.grad_scaler = str(folder), torch.device("cuda", 9), object()
        self.calls = calls

    def load_checkpoint(self, path):
        """Note its name."""
        self.calls["load"] = (Path(path).name,)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What nnU-Net is asked to do; nothing is trained."""
    calls = {}
    for name in ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)

    def make(*args, **kwargs):
        calls["trainer"] = Trainer(tmp_path, calls)
        return calls["trainer"]

    def run(dataset_name_or_id, configuration, fold, trainer_class_name, plans_identifier, pretrained_weights=None,
            num_gpus=1, export_validation_probabilities=False, continue_training=False, only_run_validation=False,
            disable_checkpointing=False, val_with_best=False, device=None):  # fmt: skip
        calls["run"] = (dataset_name_or_id, configuration, fold, trainer_class_name, plans_identifier, num_gpus, device)
        trainer = nnunet.get_trainer_from_args()
        nnunet.maybe_load_checkpoint(trainer, continue_training, only_run_validation, pretrained_weights)

    monkeypatch.setattr(nnunet, "get_trainer_from_args", make)
    monkeypatch.setattr(nnunet, "run_training", run)
    monkeypatch.setattr(nnunet, "maybe_load_checkpoint", lambda trainer, *what: calls.update(load=what))
    threads = torch.get_num_threads()
    yield calls
    torch.set_num_threads(threads)
