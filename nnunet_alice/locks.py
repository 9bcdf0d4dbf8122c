"""Locks that end with the processes that hold them, so that nothing has to be unlocked by hand after a kill."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[int | None]:
    """Hold a lock and yield its descriptor, or None if a different process has it.

    A child that inherits the descriptor holds the lock, too: a run that outlives its killed parent is not run twice.
    Where the block ends well, the lock is free, whoever still has the descriptor.
    Gives -1 where the system (Windows) or the file system (Lustre without flock) has no such locks.

    Args:
        path: file of the lock, made if missing.
        wait: until the other process lets go of it, instead of giving None.
    """
    try:
        import fcntl
    except ImportError:
        yield -1
        return
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("w")
        except FileNotFoundError:  # somebody tidied up the folder in between
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            except OSError as error:
                logger.warning("%s cannot be locked (%s): let no two processes do the same work.", path, error)
                yield -1
                return
            if _is_file_at(file.fileno(), path):  # else whoever held it before has removed it
                yield file.fileno()
                fcntl.flock(file, fcntl.LOCK_UN)  # what a killed child started may still have the descriptor
                return


def _is_file_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file still lies at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
