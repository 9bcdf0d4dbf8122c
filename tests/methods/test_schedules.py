"""Schedules against hand values and closed forms."""

import itertools
import math

import pytest

from nnunet_alice.methods.schedules import cosine, linear, warmup_cosine


@pytest.mark.parametrize("step, expected", [(-3, 0.008), (0, 0.008), (15, 0.009), (30, 0.01), (1000, 0.01)])
def test_linear_is_the_papers_teacher_temperature(step, expected):
    assert linear(step, 30, 0.008, 0.01) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_ends_are_exact(schedule):
    assert schedule(0, 7, 0.996, 1.0) == 0.996
    assert schedule(7, 7, 0.996, 1.0) == 1.0
    assert schedule(8, 7, 0.996, 1.0) == 1.0
    assert schedule(0, 0, 0.1, 0.3) == 0.3


@pytest.mark.parametrize("step, expected", [(25, 0.4 + (0.04 - 0.4) * (2 + math.sqrt(2)) / 4), (50, 0.22)])
def test_cosine_hand_values(step, expected):
    assert cosine(step, 100, 0.04, 0.4) == pytest.approx(expected)


def test_cosine_is_point_symmetric_about_its_middle():
    for step in range(101):
        assert cosine(step, 100, 2.0, 6.0) + cosine(100 - step, 100, 2.0, 6.0) == pytest.approx(8.0)


def test_warmup_cosine_rises_then_falls():
    values = [warmup_cosine(step, 100, 10, peak=1.0, end=0.1) for step in range(101)]
    assert values[0] == 0
    assert values[5] == pytest.approx(0.5)
    assert values[10] == max(values) == 1.0
    assert values[55] == pytest.approx(0.55)
    assert values[100] == 0.1
    assert all(later > earlier for earlier, later in itertools.pairwise(values[:11]))
    assert all(later < earlier for earlier, later in itertools.pairwise(values[10:]))


def test_without_warmup_the_peak_comes_first_and_all_warmup_ends_at_the_peak():
    assert warmup_cosine(0, 100, 0, peak=3.0) == 3.0
    assert warmup_cosine(100, 100, 100, peak=3.0) == 3.0


@pytest.mark.parametrize("warmup", [-1, 101])
def test_impossible_warmup_is_refused(warmup):
    with pytest.raises(ValueError, match="warmup"):
        warmup_cosine(0, 100, warmup, peak=1.0)
