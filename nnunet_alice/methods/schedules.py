"""Schedules as pure functions of a step, so that a resumed run needs nothing but its step counter.

A step counts from 0; the end value is reached at ``step == total`` and kept afterwards. "Step" is whatever the caller
counts: iterations or epochs, also fractions of an epoch.
"""

import math


def _progress(step: float, total: float) -> float:
    """Return done share of a schedule in [0, 1]; a schedule of no length is done."""
    if total <= 0:
        return 1.0
    return min(max(step / total, 0.0), 1.0)


def linear(step: float, total: float, start: float, end: float) -> float:
    """Return a straight line from ``start`` at step 0 to ``end`` at step ``total``, constant outside.

    Args:
        step: Current step.
        total: Length of the schedule; ``end`` throughout when it is not positive.
        start: Value at step 0.
        end: Value from step ``total`` on.
    """
    done = _progress(step, total)
    # Written as a mixture, because start + done * (end - start) can miss `end` by a rounding error.
    return (1.0 - done) * start + done * end


def cosine(step: float, total: float, start: float, end: float) -> float:
    """Return half a cosine wave from ``start`` to ``end``; arguments are those of `linear`."""
    remaining = 0.5 * (1.0 + math.cos(math.pi * _progress(step, total)))
    return remaining * start + (1.0 - remaining) * end


def warmup_cosine(step: float, total: float, warmup: float, peak: float, end: float = 0.0) -> float:
    """Return a linear rise from 0 to ``peak`` over ``warmup`` steps, then a cosine to ``end``.

    Args:
        step: Current step.
        total: Length of the whole schedule, warm-up included.
        warmup: Steps of the rise; ``peak`` is reached at ``step == warmup``. None when 0.
        peak: Largest value.
        end: Value from step ``total`` on.

    Raises:
        ValueError: If the warm-up is negative or longer than the schedule.
    """
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup must lie between 0 and total, got warmup={warmup} and total={total}.")
    if step < warmup:
        return linear(step, warmup, 0.0, peak)
    # A schedule that is all warm-up ends at its peak; it has no cosine part.
    return peak if warmup == total else cosine(step - warmup, total - warmup, peak, end)
