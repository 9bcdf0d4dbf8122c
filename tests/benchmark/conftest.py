"""What tests of benchmarks share."""

import pytest
from support.benchmark_runs import set_up_dataset


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A labelled dataset and a checkpoint to start from."""
    return set_up_dataset(tmp_path, monkeypatch)
