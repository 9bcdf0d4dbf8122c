"""The same work for every case in several processes, where no case can stop the others."""

import concurrent.futures
import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from nnunet_alice.errors import AliceError


def map_cases(
    function: Callable[[Any, Any], Any], shared: Any, cases: Sequence, num_processes: int, description: str
) -> Iterator[tuple[Any, Any]]:
    """Call ``function(shared, case)`` for every case and yield (case, result) as they finish, with a progress bar.

    Processes are spawned, so ``function`` must be importable and ``shared`` picklable. An exception is yielded as the
    result of its case. When a process dies (killed for memory, a crash in a library), the cases that were in work are
    tried again one by one, each in its own process; only the one that dies again fails.

    Args:
        function: work on one case.
        shared: what every call needs; keep it small.
        cases: names of the cases, or anything else picklable that says what a case is.
        num_processes: processes; with 1 everything runs in this process, without that safety net.
        description: text of the progress bar.

    Yields:
        (case, result or Exception), in the order of finishing.
    """
    with tqdm(total=len(cases), desc=description, disable=None) as bar:
        work = _serial if num_processes <= 1 or len(cases) <= 1 else _parallel
        for case, outcome in work(function, shared, cases, num_processes):
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
    function: Callable,
    shared: Any,
    cases: Sequence,
    num_processes: int,  # noqa: ARG001  as of _parallel
) -> Iterator[tuple[Any, Any]]:
    for case in cases:
        try:
            outcome = function(shared, case)
        except Exception as error:
            outcome = error
        yield case, outcome


def _parallel(function: Callable, shared: Any, cases: Sequence, num_processes: int) -> Iterator[tuple[Any, Any]]:
    waiting = iter(cases)
    broken = True
    pool = None
    try:
        while True:
            if broken:
                pool, broken = _pool(min(num_processes, len(cases))), False
            assert pool is not None
            suspects = yield from _drain(pool, function, shared, waiting, 2 * num_processes)
            if not suspects:
                return
            broken = True
            pool.shutdown(wait=False)
            for case in suspects:
                with _pool(1) as own:
                    try:
                        with deaf_to_interrupts():
                            future = own.submit(function, shared, case)
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


def _abandon(pool: concurrent.futures.ProcessPoolExecutor | None) -> None:
    """End the processes of a pool in the middle of their work; left alone, they would first finish their cases."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()


def _drain(
    pool: concurrent.futures.ProcessPoolExecutor, function: Callable, shared: Any, waiting: Iterator, in_flight: int
) -> Generator[tuple[Any, Any], None, list]:
    """Yield outcomes until ``waiting`` is used up; returns the cases that were in work when a process died."""
    running: dict[concurrent.futures.Future, Any] = {}
    while True:
        for case in itertools.islice(waiting, in_flight - len(running)):
            try:
                with deaf_to_interrupts():
                    running[pool.submit(function, shared, case)] = case
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
