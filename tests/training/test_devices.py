"""GPUs are those of the own machine, and batch normalisation is shared among processes or refused."""

import torch
from support.refused import refused
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from nnunet_alice.errors import InputError
from nnunet_alice.training.devices import OwnDeviceDDP, place, share_batch_statistics

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


class Stock:
    """Stands for nnU-Net's trainer on the second of two machines with four GPUs each."""

    def __init__(self) -> None:
        self.local_rank, self.device, self.grad_scaler = 5, torch.device("cuda", 5), object()

    def initialize(self):
        return DDP


class Derived(Stock):
    """Wraps by the name that its base's module knows."""


def test_a_trainer_gets_its_own_gpu_and_keeps_its_rank(monkeypatch):
    monkeypatch.setitem(globals(), "DDP", DDP)  # is put back afterwards
    trainer = Derived()
    place(trainer, CUDA)
    assert (trainer.device, trainer.local_rank) == (CUDA, 5) and trainer.grad_scaler is not None
    assert trainer.initialize() is OwnDeviceDDP
    place(trainer, CPU)
    assert trainer.device == CPU and trainer.grad_scaler is None


def test_ddp_takes_the_device_of_the_module(monkeypatch):
    asked = []
    monkeypatch.setattr(DDP, "__init__", lambda self, module, device_ids: asked.append(device_ids))
    for device in (CPU, CUDA):
        module = nn.Linear(1, 1)
        monkeypatch.setattr(module, "parameters", lambda device=device: iter([type("P", (), {"device": device})]))
        OwnDeviceDDP(module, device_ids=[5])
    assert asked == [None, [1]]


def test_batch_norms_are_shared_on_gpus_and_refused_elsewhere():
    module = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    with refused(InputError, value="batch normalisation"):
        share_batch_statistics(module, CPU)
    share_batch_statistics(module, CUDA)
    assert isinstance(module[1], nn.SyncBatchNorm)
    share_batch_statistics(nn.Sequential(nn.InstanceNorm3d(2)), CPU)
