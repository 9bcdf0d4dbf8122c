"""OMP_NUM_THREADS limits the threads that nnU-Net sets on the CPU, and nothing else."""

import pytest
import torch

from nnunet_alice.training.cpu_threads import keep_thread_limit


@pytest.mark.parametrize(
    ("limit", "device", "threads"),
    [
        ("1", "cpu", 1),
        ("1,1", "cpu", 1),
        ("2", "cpu", 2),
        ("8", "cpu", 2),
        ("0", "cpu", 2),
        ("many", "cpu", 2),
        (None, "cpu", 2),
        ("1", "cuda", 2),
    ],
)
def test_threads_are_limited_on_the_cpu_only(limit, device, threads, two_threads, monkeypatch):
    if limit is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    keep_thread_limit(torch.device(device))
    assert torch.get_num_threads() == threads
