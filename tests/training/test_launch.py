"""``nnunet_alice train`` hands nnU-Net's own functions what torchrun's environment says."""

import os
import time
from datetime import timedelta
from multiprocessing.pool import ThreadPool

import pytest
import torch
import torch.distributed as dist
from support.launched import COMMAND

from nnunet_alice.training import launch


@pytest.mark.parametrize("checkpoint", [None, "checkpoint_latest.pth"])
def test_a_restart_continues_where_there_is_something_to_continue(asked, tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    if checkpoint:
        (tmp_path / checkpoint).touch()
    launch.train([*COMMAND, "-device", "cpu", "-pretrained_weights", "w.pth"])
    assert asked["load"] == ((checkpoint,) if checkpoint else (False, False, "w.pth"))
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


@pytest.mark.parametrize("more", [[], ["--c"]])
def test_a_restart_does_not_take_the_checkpoint_of_a_run_that_was_there_before(asked, tmp_path, monkeypatch, more):
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("RANK", "0")
    earlier = tmp_path / "checkpoint_final.pth"
    earlier.touch()
    launch.train([*COMMAND, "-device", "cpu", *more])
    assert asked["load"] == (bool(more), False, None)
    launch.train([*COMMAND, "-device", "cpu", *more])
    assert asked["load"] == ((earlier.name,) if more else (False, False, None))
    latest = tmp_path / "checkpoint_latest.pth"
    latest.touch()
    os.utime(latest, (time.time() - 100,) * 2)  # the clock of a file server
    launch.train([*COMMAND, "-device", "cpu", *more])
    assert asked["load"] == (earlier.name if more else latest.name,)
    earlier.write_text("of this run")
    launch.train([*COMMAND, "-device", "cpu", *more])
    assert asked["load"] == (earlier.name,)


@pytest.mark.slow
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
