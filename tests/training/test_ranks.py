"""Two real gloo processes: rank 0 works first, slow ranks are waited for, and metrics become means."""

import math
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from support.gloo_ranks import needs_distributed, on_ranks

from nnunet_alice.training.epoch import EpochMetrics
from nnunet_alice.training.ranks import metrics_over_ranks, on_one_rank, on_one_rank_first, wait_for_all_ranks

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
#: What collectives after the work allow, and how long one rank works (seconds).
TIMEOUT, SLOW = 1, 2


def results_of(rank, folder):
    steps = [{"metrics": {}, "views": 4 - 2 * rank, "skipped": False}] * 3  # of batches of 2 pairs and of 1
    views = EpochMetrics.of_training(steps, CPU, {}).views
    return {"first": rank_0_first(rank, folder), "metrics": metrics(rank), "views": views, "slow": slow_ranks(rank)}


def rank_0_first(rank, folder):
    def work():
        # Whoever comes second must find what the first one has written, whole.
        done = folder / "done"
        found = done.is_file() and done.read_text() == "whole"
        done.write_text("whole")
        return rank, found

    return on_one_rank_first(work)


def metrics(rank):
    own = {"loss": 1.0 + rank, "spread": 0.5, "of rank 1": 3.0 if rank else math.nan, "of none": math.nan}
    return metrics_over_ranks(own, CPU)


def slow_ranks(rank):
    """What work gives on this rank where one rank is slow; an impatient collective follows each."""
    impatient = dist.new_group(timeout=timedelta(seconds=TIMEOUT))

    def work(slow_rank):
        time.sleep(SLOW if rank == slow_rank else 0)
        return rank

    found = []
    for way, slow_rank in ((on_one_rank_first, 0), (on_one_rank_first, 1), (on_one_rank, 0)):
        found.append(way(partial(work, slow_rank)))
        dist.barrier(group=impatient)
    work(1)
    wait_for_all_ranks()
    dist.barrier(group=impatient)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return on_ranks(results_of, folder, folder)


@needs_distributed
def test_rank_0_works_first_and_metrics_are_means(ranks):
    for rank, results in enumerate(ranks):
        assert results["first"] == (rank, rank == 1)
        assert math.isnan(results["metrics"].pop("of none"))
        assert results["metrics"] == {"loss": 1.5, "spread": 0.5, "of rank 1": 3.0}
        assert results["views"] == 18


@needs_distributed
def test_slow_ranks_are_waited_for_before_the_next_collective(ranks):
    assert [results["slow"] for results in ranks] == [[0, 0, 0], [1, 1, 0]]


def test_one_process_works_once_and_keeps_its_metrics():
    calls = []
    assert on_one_rank_first(lambda: calls.append(1) or len(calls)) == 1
    assert on_one_rank(lambda: calls.append(1) or len(calls)) == 2
    assert metrics_over_ranks({"loss": 2.0}, CPU) == {"loss": 2.0}
