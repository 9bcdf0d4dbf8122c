"""Work on cases in several processes."""

import os
import time

import pytest

from nnunet_alice.errors import AliceError
from nnunet_alice.parallel import map_cases


def work(offset: int, number: int) -> int:
    """Runs in a worker: 3 fails, 5 kills its process, others are added to the offset."""
    if number == 3:
        raise ValueError("three is bad")
    if number == 5:
        os._exit(9)
    return offset + number


def sleep(_: float, seconds: int) -> None:
    """Runs in a worker."""
    time.sleep(seconds)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_case_has_its_outcome_and_an_error_stops_no_other(processes):
    outcomes = dict(map_cases(work, 10, [1, 2, 3, 4, 6], processes, "Testing"))
    assert isinstance(outcomes.pop(3), ValueError)
    assert outcomes == {1: 11, 2: 12, 4: 14, 6: 16}


def test_a_case_that_kills_its_process_fails_alone():
    outcomes = list(map_cases(work, 10, list(range(12)), 2, "Testing"))
    assert sorted(case for case, _ in outcomes) == list(range(12))
    outcomes = dict(outcomes)
    assert isinstance(outcomes[5], AliceError) and "5: the process died" in str(outcomes[5])
    assert isinstance(outcomes[3], ValueError)
    assert all(outcomes[n] == 10 + n for n in range(12) if n not in (3, 5))


def test_whoever_stops_early_does_not_wait_for_cases_in_work():
    started = time.monotonic()
    outcomes = map_cases(sleep, 0.0, [0, 100, 100, 100], 2, "Testing")
    assert next(outcomes) == (0, None)
    outcomes.close()
    assert time.monotonic() - started < 60


def test_nothing_to_do():
    assert list(map_cases(work, 10, [], 4, "Testing")) == []
