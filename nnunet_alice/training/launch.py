"""Training by nnU-Net's own functions in processes that torchrun started, on one machine or several."""

import inspect
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed as dist

from nnunet_alice.errors import InputError
from nnunet_alice.training.continuing import CHECKPOINTS
from nnunet_alice.training.devices import place
from nnunet_alice.training.ranks import PATIENCE, of_all_ranks

#: Beginning of our keys in torchrun's store, and seconds between two looks at it.
_OURS, _PAUSE = "nnunet_alice", 0.2


def train(arguments: Sequence[str]) -> None:
    """Do what ``nnUNetv2_train`` does with these arguments, together with all processes of torchrun.

    Without torchrun, or with one process, it is ``nnUNetv2_train``. Processes that torchrun starts again after a
    failure continue from the last checkpoint of this run, as with ``--c``; where there is none, they begin again.

    Args:
        arguments: those of ``nnUNetv2_train``.

    Raises:
        InputError: ``-num_gpus`` contradicts torchrun, processes cannot share the device, or the trainer is unknown.
    """
    from nnunetv2.run import run_training as nnunet

    together = int(os.environ.get("WORLD_SIZE", 1)) > 1
    restarted = asked = False
    run, make, load = nnunet.run_training, nnunet.get_trainer_from_args, nnunet.maybe_load_checkpoint

    def run_together(*args: Any, **kwargs: Any) -> None:
        nonlocal restarted, asked
        call = inspect.signature(run).bind(*args, **kwargs).arguments
        if together and call["num_gpus"] > 1:
            raise InputError("torchrun says how many processes train (--nproc-per-node); leave -num_gpus away.").about(
                option="-num_gpus"
            )
        with _process_group(call["device"]) if together else nullcontext(call["device"]) as device:
            restarted = any(of_all_ranks([_started_again()]))
            asked = call["continue_training"]
            if restarted and not call["only_run_validation"]:
                call["continue_training"] = True
            with patch.object(nnunet, "get_trainer_from_args", _on(device, make) if together else make):
                run(**call | {"device": device})

    def load_after_restart(trainer: Any, continues: bool, validates: bool, pretrained: str | None = None) -> None:
        there = _checkpoints(trainer.output_folder)
        before = _there_before([] if asked else there)
        if restarted and continues:
            own = [found.split(":")[0] for found in there if found not in before]
            if own:
                trainer.load_checkpoint(str(Path(trainer.output_folder, own[0])))
                return
            continues = False
        load(trainer, continues, validates, pretrained)

    with (
        patch.object(nnunet, "run_training", run_together),
        patch.object(nnunet, "maybe_load_checkpoint", load_after_restart),
        patch.object(sys, "argv", ["nnunet_alice train", *arguments]),
    ):
        try:
            nnunet.run_training_entry()
        except RuntimeError as error:
            if not str(error).startswith("Could not find requested nnunet trainer"):
                raise
            raise InputError("There is no trainer of that name; nnunet_alice trainers --list names ours.").about(
                command="nnunet_alice trainers --list"
            ) from None


def _started_again() -> bool:
    """Return whether torchrun had processes of this run before these, as far as this one can tell; each is to ask once.

    torchrun's own count is that of failures on one machine: it stays 0 where healthy processes were stopped because
    those of a different machine start again. The store of torchrun's first machine outlives all processes.
    """
    store = _torchruns_store()
    starts = 1 if store is None else store.add(f"{_OURS}/starts/{os.environ['RANK']}", 1)
    return starts > 1 or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def _checkpoints(folder: str) -> list[str]:
    """Return the checkpoints of a folder in nnU-Net's order, each with its time and size: ``name:time:size``."""
    paths = [Path(folder, name) for name in CHECKPOINTS]
    states = [(path.name, path.stat()) for path in paths if path.is_file()]
    return [f"{name}:{state.st_mtime_ns}:{state.st_size}" for name, state in states]


def _there_before(found: Sequence[str]) -> set[str]:
    """Return what torchrun's first processes of this run found in the folder; nothing where it keeps no store.

    A checkpoint that has not changed since belongs to a run that was there before.

    Args:
        found: by this process. Only that of the first one is kept.
    """
    store = _torchruns_store()
    return set() if store is None else set(json.loads(store.compare_set(f"{_OURS}/there", "", json.dumps(found))))


def _torchruns_store() -> dist.Store | None:
    """Return the store that torchrun shares with its processes; None without."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=PATIENCE)


def own_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Return a part of torchrun's store that no earlier processes have written to; wait for all ranks.

    torchrun keeps one store when it starts processes again, and torch would find the addresses of the dead ones there.
    Rank 0 names the part, and repeats the name to everybody who says to be there, until all have answered.

    Args:
        store: where earlier ranks have done the same.
        rank: of this process.
        size: number of ranks.
    """
    me, others = uuid.uuid4().hex, range(1, size)
    if rank > 0:
        store.set(f"{_OURS}/here/{rank}", me)
        while True:
            store.wait([f"{_OURS}/invited/{rank}"])
            asked, name = store.get(f"{_OURS}/invited/{rank}").decode().split()
            if asked == me:
                store.set(f"{_OURS}/{name}/{rank}", "")
                return dist.PrefixStore(name, store)
            time.sleep(_PAUSE)
    while not all(store.check([f"{_OURS}/{me}/{other}"]) for other in others):
        for other in others:
            if store.check([f"{_OURS}/here/{other}"]):
                store.set(f"{_OURS}/invited/{other}", f"{store.get(f'{_OURS}/here/{other}').decode()} {me}")
        time.sleep(_PAUSE)
    return dist.PrefixStore(me, store)


@contextmanager
def _process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the process group of torchrun's environment, and give this process's device."""
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"Several processes train with -device cuda or cpu, not {device.type}.").about(
            option="-device", value=device.type
        )
    if device.type == "cuda":
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise InputError(
                f"This machine has {there} GPU(s); start torchrun with --nproc-per-node={there} or fewer."
            ).about(option="--nproc-per-node", value=there)
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    # Ranks prepare and validate at their own pace, which takes longer than the ten minutes that NCCL would wait.
    backend, store = "nccl" if device.type == "cuda" else "gloo", _torchruns_store()
    if store is None:
        dist.init_process_group(backend, timeout=PATIENCE)
    else:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        part = own_part(store, rank, size)
        dist.init_process_group(backend, store=part, rank=rank, world_size=size, timeout=PATIENCE)
    yield device
    dist.destroy_process_group()  # not after an error: other ranks may be in the middle of a collective


def _on(device: torch.device, make: Callable) -> Callable:
    """Return nnU-Net's ``get_trainer_from_args``, for a process that uses ``device``."""

    def make_placed(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        place(trainer, device)
        return trainer

    return make_placed
