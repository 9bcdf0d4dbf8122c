"""Cases that cannot be read: named once, left out, and something else drawn in their place, the same in every run.

Batches are numbered, and workers meet a damaged case at different times. So nothing is ever taken off the list that is
drawn from: whoever draws a case that cannot be read draws again, whether that was known before or not.
"""

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from nnunet_alice.errors import AliceError

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: What reading a file that is missing, cut off, overwritten or stale raises; anything else is a mistake in the program.
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class UnreadableCaseError(AliceError):
    """A case was drawn that cannot be read; :meth:`Readings.again` draws another."""


class Readings:
    """Which cases a loader could not read so far; in every worker process its own.

    Attributes:
        unreadable: case -> reason, in the order of discovery.
    """

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}

    @contextmanager
    def of(self, case: str) -> Iterator[None]:
        """Read files of a case in this block. What cannot be read is named in the log once and never tried again.

        Raises:
            UnreadableCaseError: the case cannot be read.
        """
        if case in self.unreadable:
            raise UnreadableCaseError(self.unreadable[case])
        try:
            yield
        except _DAMAGE as error:
            self.unreadable[case] = reason = _reason(case, error)
            logger.warning("Case %s is left out of training from now on: %s", case, reason)
            raise UnreadableCaseError(reason) from error

    def again(self, make: Callable[[np.random.Generator], T], rng: np.random.Generator) -> T:
        """``make(rng)``, and once more for every case it meets that cannot be read.

        A try begins one number after the one before began, however far that came: a case whose damage was known
        already (of which nothing more is read) makes no difference. ``make`` raises something else in the end.
        """
        while True:
            state = rng.bit_generator.state
            try:
                return make(rng)
            except UnreadableCaseError:
                rng.bit_generator.state = state
                rng.integers(1 << 32, dtype=np.uint32)  # the smallest step: takes half a number left over, if there is

    @property
    def first(self) -> str:
        """Why the first case could not be read, for the message that there are none left."""
        return next(iter(self.unreadable.values()), "none was met")


def _reason(case: str, error: Exception) -> str:
    """One sentence that names the case and the fix."""
    if isinstance(error, AliceError):
        return str(error)
    return (
        f"{case}.b2nd, or what anatomy stored of it, cannot be read ({type(error).__name__}: {error}); delete "
        f"{case}.b2nd, preprocess again and run nnunet_alice anatomy."
    )
