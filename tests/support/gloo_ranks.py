"""A function run on two real gloo processes, for tests of what several GPUs do together."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2

needs_distributed = pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed support")


#: What a server imports once, so that processes start in a moment; nothing that reads nnU-Net's environment.
_IMPORTED_ONCE = ["torch", "torch._dynamo", "scipy.ndimage", "SimpleITK", "skimage.registration", "pandas", "pytest"]


def on_ranks(work: Callable, folder: Path, *arguments) -> list[Any]:
    """What ``work(rank, *arguments)`` returns on each rank: tensors and plain types.

    Args:
        work: a function of a module, with a process group around it and one thread to compute with.
        folder: empty; results pass through it.
        arguments: of ``work``.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)
    call = pickle.dumps((work, arguments))  # read once the environment is there
    mp.start_processes(_main, (call, folder, dict(os.environ)), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _main(rank: int, call: bytes, folder: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    work, arguments = pickle.loads(call)
    rendezvous = f"file://{folder}/rendezvous"
    # Ranks that wait for each other in vain fail soon instead of after half an hour.
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    try:
        torch.save(work(rank, *arguments), folder / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
