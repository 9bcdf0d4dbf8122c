"""``nnunet_alice train`` hands nnU-Net's own functions what torchrun's environment says."""

import time
from datetime import timedelta
from multiprocessing.pool import ThreadPool

import pytest
import torch
import torch.distributed as dist
from nnunetv2.run import run_training as nnunet

from nnunet_alice.cli.main import main
from nnunet_alice.training import launch

COMMAND = ["900", "3d_fullres", "all", "-tr", "AliceTrainer", "-p", "SomePlans"]


class Trainer:
    """Stands for nnU-Net's; says what is asked of it."""

    def __init__(self, folder) -> None:
        self.output_folder, self.device, self.grad_scaler = str(folder), torch.device("cuda", 9), object()


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What nnU-Net is asked to do; nothing is trained."""
    calls = {}
    for name in ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)

    def make(*args, **kwargs):
        calls["trainer"] = Trainer(tmp_path)
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


def test_one_process_is_nnunets_own_command(asked):
    assert main(["train", *COMMAND, "-device", "cpu", "--c"]) == 0
    assert asked["run"] == (*COMMAND[:3], "AliceTrainer", "SomePlans", 1, torch.device("cpu"))
    assert asked["load"] == (True, False, None)
    assert asked["trainer"].device == torch.device("cuda", 9)


@pytest.mark.parametrize("checkpoint", [None, "checkpoint_latest.pth"])
def test_a_restart_continues_where_there_is_something_to_continue(asked, tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    if checkpoint:
        (tmp_path / checkpoint).touch()
    launch.train([*COMMAND, "-device", "cpu", "-pretrained_weights", "w.pth"])
    assert asked["load"] == ((True, False, None) if checkpoint else (False, False, "w.pth"))
    launch.train([*COMMAND, "-device", "cpu", "--val"])
    assert asked["load"] == (False, True, None)


def test_processes_know_that_others_ran_before_them_where_torchrun_counts_no_failure(monkeypatch):
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    found = []
    for rank in (0, 1, 0):
        monkeypatch.setenv("RANK", str(rank))
        found.append(launch._started_again())
    assert found == [False, False, True]


def test_every_start_gets_a_part_of_torchruns_store_that_nobody_wrote_to():
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def start(rank, late):
        store = dist.TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=30))
        time.sleep(0.3 * (rank == late))
        part = launch.own_part(store, rank, 3)
        found = part.check(["address"])  # of one that is dead by now
        return part, found

    for late in range(3):
        with ThreadPool(3) as pool:
            parts, found = zip(*pool.starmap(start, [(rank, late) for rank in range(3)], chunksize=1), strict=True)
        assert not any(found)
        parts[0].set("address", str(late))
        assert [part.get("address") for part in parts] == [str(late).encode()] * 3


def test_several_processes_share_a_group_and_take_their_own_device(asked, monkeypatch):
    made = []
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    monkeypatch.setattr(
        launch.dist, "init_process_group", lambda backend, timeout: made.extend((backend, timeout.days))
    )
    monkeypatch.setattr(launch.dist, "destroy_process_group", lambda: made.append("over"))
    launch.train(COMMAND)
    own = torch.device("cuda", 3)
    assert made == [own, "nccl", 7, "over"]
    assert asked["trainer"].device == own and asked["run"][-1] == own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-num_gpus", "2", "-device", "cpu"], "-num_gpus"),
        (["-device", "mps"], "not mps"),
        (["-device", "cuda"], "has 1 GPU"),
    ],
)
def test_what_cannot_work_is_one_sentence(asked, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    assert main(["train", *COMMAND, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_misspelled_trainer_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_extTrainer", "")
    assert main(["train", "900", "3d_fullres", "all", "-tr", "AliceTrainr", "-p", "SomePlans", "-device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "trainers --list" in printed.err and "Traceback" not in printed.err
