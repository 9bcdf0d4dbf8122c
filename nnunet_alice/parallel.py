"""The same work for every case in several processes, where no case can stop the others."""

import concurrent.futures
import functools
import itertools
import logging
import multiprocessing
import pickle
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from nnunet_alice.errors import AliceError, InputError
from nnunet_alice.words import counted, telling

logger = logging.getLogger(__name__)

#: Seconds between two savings of a report during the work, so that a killed run loses little.
SAVE_EVERY_S = 30.0

Result = TypeVar("Result")


@dataclass
class Outcomes(Generic[Result]):
    """What became of every case.

    Attributes:
        results: case -> result, of the cases that are done, now or before.
        kept: names of those that were done before.
        failed: case -> reason, of all others.
    """

    results: dict[str, Result] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def fail(self, case: str, reason: str) -> None:
        """Note that a case is not done, whatever was said before."""
        self.results.pop(case, None)
        if case in self.kept:
            self.kept.remove(case)
        self.failed[case] = reason

    @property
    def done(self) -> int:
        """How many cases were done now."""
        return len(self.results) - len(self.kept)

    def sentence(self, done: str) -> str:
        """Return how it went, e.g. ``3 of 4 cases indexed (1 now, 2 before), 1 failed``.

        Args:
            done: what was done with a case, e.g. ``indexed``.
        """
        total = counted(len(self.results) + len(self.failed), "case")
        before = len(self.kept)
        return f"{len(self.results)} of {total} {done} ({self.done} now, {before} before), {len(self.failed)} failed"

    def check_some(self, what: str, report: Any = None) -> None:
        """Make sure that not all cases failed.

        Args:
            what: what no case could be, e.g. ``located``.
            report: file with all reasons, if there is one.

        Raises:
            InputError: no case is done; the message has the first reason.
        """
        if not self.results:
            first = next((f"case {case}: {reason}" for case, reason in self.failed.items()), "there is no case")
            where = "" if report is None else f" (all in {report})"
            raise InputError(f"No case could be {what}; {first}{where}.").about(
                case=next(iter(self.failed), None), path=report
            )


def for_each_case(
    work: Callable[[Any], Result],
    cases: Sequence,
    *,
    doing: str,
    num_processes: int = 1,
    keep: Callable[[Any], Result | None] | None = None,
    rescue: Callable[[Any, Exception], Result] | None = None,
    report: Callable[[Outcomes[Result]], None] | None = None,
) -> Outcomes[Result]:
    """Do the same work for every case; a case that fails is named and stops no other.

    Args:
        work: on one case; see :func:`map_cases`.
        cases: names of the cases, or anything picklable whose ``str`` is the name.
        doing: text of the progress bar, and what a case is named for in the log.
        num_processes: processes; 1 works in this process.
        keep: gives the result of a case that was done before, or None.
        rescue: is called with a case and its error; gives a result in spite of it, or raises what is to be told.
        report: writes down how far it is: at the start, every half minute and at the end, also of a run that is
            stopped. It has to be atomic.
    """
    outcomes: Outcomes[Result] = Outcomes()

    def settle(case: Any, outcome: Any) -> None:
        try:
            if isinstance(outcome, Exception):
                if rescue is None:
                    raise outcome
                outcome = rescue(case, outcome)
            outcomes.results[str(case)] = outcome
        except Exception as error:  # whatever is wrong with one case, the others go on
            outcomes.fail(str(case), telling(error))
            logger.warning("%s: case %s failed: %s.", doing, case, telling(error))

    waiting = list(cases)
    if keep is not None:
        waiting = []
        for case in cases:
            try:
                known = keep(case)
            except Exception as error:
                settle(case, error)
                continue
            if known is None:
                waiting.append(case)
            else:
                outcomes.results[str(case)] = known
                outcomes.kept.append(str(case))
        if outcomes.kept:
            logger.info("%s: %d of %s were done before.", doing, len(outcomes.kept), counted(len(cases), "case"))
    if report is not None:
        report(outcomes)
    saved = time.monotonic()
    try:
        for case, outcome in map_cases(work, waiting, num_processes, doing):
            settle(case, outcome)
            if report is not None and time.monotonic() - saved > SAVE_EVERY_S:
                report(outcomes)
                saved = time.monotonic()
    finally:
        if report is not None:
            report(outcomes)
    return outcomes


def map_cases(work: Callable[[Any], Any], cases: Sequence, num_processes: int, doing: str) -> Iterator[tuple[Any, Any]]:
    """Call ``work(case)`` for every case and yield (case, result) as they finish, with a progress bar.

    Processes are spawned, so ``work`` must be picklable: a function of a module, or a ``functools.partial`` of one with
    what every call needs. An exception is yielded as the result of its case. When a process dies (killed for memory, a
    crash in a library), the cases that were in work are tried again one by one, each in its own process; only the one
    that dies again fails.

    Args:
        work: on one case.
        cases: names of the cases, or anything else picklable that says what a case is.
        num_processes: processes; with 1 everything runs in this process, without that safety net.
        doing: text of the progress bar.

    Yields:
        (case, result or Exception), in the order of finishing.
    """
    with tqdm(total=len(cases), desc=doing, disable=None) as bar:
        run = _serial if num_processes <= 1 or len(cases) <= 1 else _parallel
        for case, outcome in run(work, cases, num_processes):
            bar.update()
            yield case, outcome


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C: the terminal sends it to all, and each would print a traceback.

    This process still gets its ``KeyboardInterrupt``, and has to end the others (``end_processes``). A child inherits
    which signals the thread that starts it has blocked; a second thread takes them meanwhile.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    threading.Thread(target=over.wait, daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()


def end_processes() -> None:
    """End all processes that this one started through ``multiprocessing``, in the middle of their work."""
    for process in multiprocessing.active_children():
        process.terminate()


def _serial(
    work: Callable,
    cases: Sequence,
    num_processes: int,  # noqa: ARG001  as of _parallel
) -> Iterator[tuple[Any, Any]]:
    for case in cases:
        try:
            outcome = work(case)
        except Exception as error:
            outcome = error
        yield case, outcome


def _parallel(work: Callable, cases: Sequence, num_processes: int) -> Iterator[tuple[Any, Any]]:
    work = functools.partial(_picklable, work)
    waiting = iter(cases)
    broken = True
    pool = None
    try:
        while True:
            if broken:
                pool, broken = _pool(min(num_processes, len(cases))), False
            assert pool is not None
            suspects = yield from _drain(pool, work, waiting, 2 * num_processes)
            if not suspects:
                return
            broken = True
            pool.shutdown(wait=False)
            for case in suspects:
                with _pool(1) as own:
                    try:
                        with deaf_to_interrupts():
                            future = own.submit(work, case)
                        outcome = future.result()
                    except BrokenProcessPool:
                        outcome = AliceError(f"{case}: the process died, perhaps for want of memory.")
                    except Exception as error:
                        outcome = error
                yield case, outcome
    except BaseException:  # Ctrl-C, or the caller wants no more
        _abandon(pool)
        raise
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _picklable(work: Callable[[Any], Result], case: Any) -> Result:
    """Return ``work(case)`` in a worker. Of an error that would not arrive, as it cannot be pickled, the text does."""
    try:
        return work(case)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise AliceError(f"{telling(error)}.") from None
        raise


def _abandon(pool: concurrent.futures.ProcessPoolExecutor | None) -> None:
    """End the processes of a pool in the middle of their work; left alone, they would first finish their cases."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()


def _drain(
    pool: concurrent.futures.ProcessPoolExecutor, work: Callable, waiting: Iterator, in_flight: int
) -> Generator[tuple[Any, Any], None, list]:
    """Yield outcomes until ``waiting`` is used up; returns the cases that were in work when a process died."""
    running: dict[concurrent.futures.Future, Any] = {}
    while True:
        for case in itertools.islice(waiting, in_flight - len(running)):
            try:
                with deaf_to_interrupts():
                    running[pool.submit(work, case)] = case
            except BrokenProcessPool:
                return [*running.values(), case]
        if not running:
            return []
        done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                # Results that arrived before the death are kept; all others are suspects.
                finished = [f for f in done if f in running and f.exception() is None]
                for good in finished:
                    yield running.pop(good), good.result()
                return list(running.values())
            yield running.pop(future), error if error is not None else future.result()


def _pool(num_processes: int) -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
