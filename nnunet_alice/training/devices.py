"""Which GPU a process trains on: the one of its own machine, wherever its rank stands among all machines."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_alice.errors import InputError
from nnunet_alice.methods.unets import has_batch_norm


class OwnDeviceDDP(DistributedDataParallel):
    """``DistributedDataParallel`` on the device that the module lies on, whichever one is asked for.

    nnU-Net asks for the GPU whose number is the rank among all machines, which a second machine does not have.
    """

    def __init__(self, module: nn.Module, device_ids: list[int] | None = None, **options: Any) -> None:
        device = next(module.parameters()).device
        super().__init__(module, device_ids=[device.index] if device.type == "cuda" else None, **options)


def place(trainer: Any, device: torch.device) -> None:
    """Let a trainer of several processes use a device of this machine, before it builds its network.

    Args:
        trainer: nnU-Net's or a subclass, not initialised; changed in place.
        device: with its number, as ``cuda:0``, or ``cpu``.
    """
    trainer.device = device
    if device.type != "cuda":
        trainer.grad_scaler = None
    # Trainers wrap their networks by the name DDP of the module that they were written in.
    for kind in type(trainer).__mro__:
        for member in vars(kind).values():
            names = getattr(getattr(member, "__func__", member), "__globals__", {})
            if names.get("DDP") is DistributedDataParallel:
                names["DDP"] = OwnDeviceDDP


def share_batch_statistics(module: nn.Module, device: torch.device) -> None:
    """Let the batch normalisation of a module's parts take the batch of all ranks, as nnU-Net's trainers do; in place.

    Args:
        module: all that is trained or follows what is.
        device: of the training.

    Raises:
        InputError: it has batch normalisation, which only GPUs synchronise.
    """
    if device.type != "cuda" and has_batch_norm(module):
        raise InputError(
            "These plans have batch normalisation, which several processes can only share on GPUs; "
            "train in one process, or with plans that use instance normalisation."
        ).about(value="batch normalisation")
    nn.SyncBatchNorm.convert_sync_batchnorm(module)
