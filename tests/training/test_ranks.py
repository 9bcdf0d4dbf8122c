"""Two real gloo processes: rank 0 works first, and metrics become means."""

import math

import torch
from gloo_ranks import needs_distributed, on_ranks

from nnunet_alice.training.ranks import metrics_over_ranks, on_one_rank_first

CPU = torch.device("cpu")


def results_of(rank, folder):
    def work():
        # Whoever comes second must find what the first one has written, whole.
        done = folder / "done"
        found = done.is_file() and done.read_text() == "whole"
        done.write_text("whole")
        return rank, found

    result = on_one_rank_first(work)
    own = {"loss": 1.0 + rank, "spread": 0.5, "of rank 1": 3.0 if rank else math.nan, "of none": math.nan}
    return result, metrics_over_ranks(own, CPU)


@needs_distributed
def test_rank_0_works_first_and_metrics_are_means(tmp_path):
    for rank, (result, metrics) in enumerate(on_ranks(results_of, tmp_path, tmp_path)):
        assert result == (rank, rank == 1)
        assert math.isnan(metrics.pop("of none"))
        assert metrics == {"loss": 1.5, "spread": 0.5, "of rank 1": 3.0}


def test_one_process_works_once_and_keeps_its_metrics():
    calls = []
    assert on_one_rank_first(lambda: calls.append(1) or len(calls)) == 1
    assert metrics_over_ranks({"loss": 2.0}, CPU) == {"loss": 2.0}
