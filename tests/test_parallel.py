"""Work on cases in several processes."""

import os
import time
from functools import partial

import pytest
from support.refused import refused

from nnunet_alice import parallel
from nnunet_alice.errors import AliceError, InputError
from nnunet_alice.parallel import Outcomes, for_each_case, map_cases


class TwoArgumentsError(Exception):
    """Cannot be unpickled, as many errors of libraries cannot."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def work(offset: int, number: int) -> int:
    """Runs in a worker: 3 fails, 5 kills its process, 8 fails in an odd way, others are added to the offset."""
    if number == 3:
        raise ValueError("three is bad")
    if number == 5:
        os._exit(9)
    if number == 8:
        raise TwoArgumentsError("odd", "telling")
    return offset + number


def sleep(seconds: int) -> None:
    """Runs in a worker."""
    time.sleep(seconds)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_case_has_its_outcome_and_an_error_stops_no_other(processes):
    outcomes = dict(map_cases(partial(work, 10), [1, 2, 3, 4, 6, 8], processes, "Testing"))
    assert isinstance(outcomes.pop(3), ValueError)
    assert "odd and telling" in str(outcomes.pop(8))
    assert outcomes == {1: 11, 2: 12, 4: 14, 6: 16}


@pytest.mark.slow
def test_a_case_that_kills_its_process_fails_alone():
    outcomes = list(map_cases(partial(work, 10), list(range(12)), 2, "Testing"))
    assert sorted(case for case, _ in outcomes) == list(range(12))
    outcomes = dict(outcomes)
    assert isinstance(outcomes[5], AliceError) and "5: the process died" in str(outcomes[5])
    assert isinstance(outcomes[3], ValueError)
    assert all(outcomes[n] == 10 + n for n in range(12) if n not in (3, 5, 8))


def test_whoever_stops_early_does_not_wait_for_cases_in_work():
    started = time.monotonic()
    outcomes = map_cases(sleep, [0, 100, 100, 100], 2, "Testing")
    assert next(outcomes) == (0, None)
    outcomes.close()
    assert time.monotonic() - started < 60


def test_nothing_to_do():
    assert list(map_cases(partial(work, 10), [], 4, "Testing")) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_run_does_what_the_first_one_left(processes, caplog):
    first = for_each_case(partial(work, 10), [1, 2, 3], doing="Testing", num_processes=processes)
    assert first.results == {"1": 11, "2": 12} and first.failed == {"3": "ValueError: three is bad"}
    assert "Testing: case 3 failed: ValueError: three is bad." in caplog.text
    assert first.sentence("tried") == "2 of 3 cases tried (2 now, 0 before), 1 failed"
    again = for_each_case(
        partial(work, 10), [1, 2, 4], doing="Testing", num_processes=processes, keep=lambda n: first.results.get(str(n))
    )
    assert again.results == {"1": 11, "2": 12, "4": 14} and again.kept == ["1", "2"] and again.done == 1


def test_an_error_may_give_a_result_or_a_reason_of_its_own():
    def rescue(case, error):
        if case == "mended":
            return 7
        raise InputError(f"{case} is beyond help.") from error

    def fail(case):
        raise OSError("disk")

    outcomes = for_each_case(fail, ["mended", "lost"], doing="Testing", rescue=rescue)
    assert outcomes.results == {"mended": 7} and outcomes.failed == {"lost": "lost is beyond help"}


def test_what_cannot_be_looked_up_fails_alone():
    def keep(number):
        if number == 1:
            raise OSError("unreadable")

    outcomes = for_each_case(partial(work, 10), [1, 2], doing="Testing", keep=keep)
    assert outcomes.results == {"2": 12} and list(outcomes.failed) == ["1"]


def test_the_report_is_written_on_the_way_and_when_the_run_is_stopped(monkeypatch):
    def stop(number):
        if number == 3:
            raise KeyboardInterrupt
        return number

    seen: list[list[str]] = []
    monkeypatch.setattr(parallel, "SAVE_EVERY_S", -1.0)
    with pytest.raises(KeyboardInterrupt):
        for_each_case(stop, [1, 2, 3], doing="Testing", report=lambda so_far: seen.append(list(so_far.results)))
    assert seen == [[], ["1"], ["1", "2"], ["1", "2"]]


def test_where_all_fail_the_first_reason_is_the_error():
    with refused(InputError, case="a", path="report.json"):
        Outcomes(failed={"a": "bad"}).check_some("read", "report.json")
    Outcomes({"a": 1}, failed={"b": "bad"}).check_some("read")
