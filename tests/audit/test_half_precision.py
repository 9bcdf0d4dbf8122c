"""Forty steps of each method in CUDA's mixed precision: finite, with a healthy scale, beside single precision."""

import itertools
import math
from collections.abc import Container, Iterator

import pytest
import torch
from gpu_check import loss_of_batch, step
from support.audited import begin, rows, short_trainer
from support.emulated_cuda import CUDA, emulated_cuda

pytestmark = pytest.mark.slow

STEPS = 40
#: Edge in voxels: every operation of a step is there, and runs of 40 steps take seconds.
PATCH = 16
METHODS = ("Alice", "Embedding", "FineTune", "DrasCLRFineTune")


def begun(row, device) -> tuple:
    """A trainer, and the numbered batches of its run: two in turns."""
    trainer = short_trainer(row, device, STEPS, scale=2.0**16)
    trainer.configuration_manager.configuration["patch_size"] = [PATCH] * 3
    return trainer, enumerate(itertools.islice(itertools.cycle(begin(trainer)), STEPS))


def check_scale(trainer, steps: dict[int, tuple[float, bool]]) -> set[int]:
    """Numbers of the steps that the search for the scale skipped; losses are finite, and the scale is healthy."""
    assert all(math.isfinite(loss) for loss, _ in steps.values())
    assert trainer.grad_scaler.get_scale() > 256
    skipped = {number for number, (_, left_out) in steps.items() if left_out}
    assert len(skipped) < 10
    return skipped


def losses_in_single_precision(row, left_out: Container[int]) -> Iterator[float]:
    """Losses of a run without some steps. No emulation is needed: the CPU takes a fifth of its time."""
    trainer, batches = begun(row, torch.device("cpu"))
    return (step(trainer, batch)[0] for number, batch in batches if number not in left_out)


@pytest.mark.parametrize("row", rows(*METHODS), ids=lambda row: row.name)
def test_forty_steps_in_half_precision(row, folders):
    with emulated_cuda():
        trainer, batches = begun(row, CUDA)
        steps = {number: step(trainer, batch) for number, batch in batches}
        skipped = check_scale(trainer, steps)
    half = [loss for number, (loss, _) in steps.items() if number not in skipped]
    single = list(losses_in_single_precision(row, skipped))
    assert half[0] == pytest.approx(single[0], rel=0.01)
    last = slice(-10, None)
    assert sum(half[last]) == pytest.approx(sum(single[last]), rel=0.1)


def test_forty_steps_of_drasclr_in_half_precision(folders):
    """Its losses are compared at the same weights, step by step.

    Over two batches of few subjects it is chaotic: in single precision, too, a run ends elsewhere if its first weights
    are rounded.
    """
    (row,) = rows("DrasCLR")
    steps = {}
    with emulated_cuda():
        trainer, batches = begun(row, CUDA)
        for number, batch in batches:
            single, half = (loss_of_batch(trainer, batch, precise) for precise in (False, True))
            assert half == pytest.approx(single, rel=0.01, abs=0.01), f"step {number}"
            steps[number] = step(trainer, batch)
        check_scale(trainer, steps)
    assert steps[0][0] != steps[STEPS - 2][0]  # it trained
