"""How many threads training takes on the CPU."""

import os

import torch


def keep_thread_limit(device: torch.device) -> None:
    """Compute on the CPU with no more threads than ``OMP_NUM_THREADS`` says, where it says anything.

    ``nnUNetv2_train -device cpu`` takes a thread for every core, whatever that variable says. Several runs on one
    machine then wait for each other's threads, several times as long as their share of the cores explains.

    Args:
        device: of the training; nothing happens on others than the CPU.
    """
    # OpenMP allows a list, a number for each level of nested parallelism
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if device.type == "cpu" and limit.isdecimal() and 0 < int(limit) < torch.get_num_threads():
        torch.set_num_threads(int(limit))
