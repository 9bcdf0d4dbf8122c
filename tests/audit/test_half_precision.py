"""Forty steps of each method in CUDA's mixed precision: finite, with a healthy scale, beside single precision."""

import itertools
import math

import pytest
from support.audited import begin, losses, rows, short_trainer
from support.emulated_cuda import CUDA, emulated_cuda

STEPS = 40
METHODS = ("Alice", "Embedding")


def run(row, half: bool) -> tuple[list[float], float]:
    """Losses of a run over two batches, and the scale at its end."""
    with emulated_cuda(half=half):
        trainer = short_trainer(row, CUDA, STEPS, scale=2.0**16)
        found = losses(trainer, itertools.islice(itertools.cycle(begin(trainer)), STEPS))
        return found, trainer.grad_scaler.get_scale()


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(*METHODS), ids=lambda row: row.name)
def test_forty_steps_in_half_precision(row, folders):
    half, scale = run(row, half=True)
    single, _ = run(row, half=False)
    assert all(map(math.isfinite, half))
    assert scale > 256
    assert half[0] == pytest.approx(single[0], rel=0.01)
    last = slice(-10, None)
    assert sum(half[last]) == pytest.approx(sum(single[last]), rel=0.1)
