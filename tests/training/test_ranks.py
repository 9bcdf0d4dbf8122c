"""Two real gloo processes: rank 0 works first, and metrics become means."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nnunet_alice.training.ranks import metrics_over_ranks, on_one_rank_first

CPU = torch.device("cpu")


def rank_main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:

        def work():
            # Whoever comes second must find what the first one has written, whole.
            done = folder / "done"
            found = done.is_file() and done.read_text() == "whole"
            done.write_text("whole")
            return rank, found

        result = on_one_rank_first(work)
        own = {"loss": 1.0 + rank, "spread": 0.5, "of rank 1": 3.0 if rank else math.nan, "of none": math.nan}
        metrics = metrics_over_ranks(own, CPU)
        torch.save((result, metrics), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed support")
def test_rank_0_works_first_and_metrics_are_means(tmp_path):
    mp.spawn(rank_main, (tmp_path,), nprocs=2)
    for rank in range(2):
        result, metrics = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result == (rank, rank == 1)
        assert math.isnan(metrics.pop("of none"))
        assert metrics == {"loss": 1.5, "spread": 0.5, "of rank 1": 3.0}


def test_one_process_works_once_and_keeps_its_metrics():
    calls = []
    assert on_one_rank_first(lambda: calls.append(1) or len(calls)) == 1
    assert metrics_over_ranks({"loss": 2.0}, CPU) == {"loss": 2.0}
