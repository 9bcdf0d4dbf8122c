"""Cases that cannot be read: named once, left out, and something else drawn in their place, the same in every run.

Batches are numbered, and workers meet a damaged case at different times, or only its sound parts. So nothing is ever
taken off the list that is drawn from, and every reading is tried: whoever fails draws again, whether the damage was
known before or not.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from nnunet_alice.anatomy.geometry import UNREADABLE
from nnunet_alice.errors import AliceError, InputError

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: So many draws in a row that meet a case which cannot be read mean that hardly any can be.
_MAX_IN_A_ROW = 200


class UnreadableCaseError(AliceError):
    """A case was drawn that cannot be read; :meth:`Readings.again` draws a different one."""


class Readings:
    """Which cases a loader could not read so far; in every worker process its own.

    Attributes:
        unreadable: case -> reason, in the order of discovery; for the log, as batches may not depend on it.
    """

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}

    @contextmanager
    def of(self, case: str) -> Iterator[None]:
        """Read files of a case in this block. What cannot be read is named in the log once.

        Raises:
            UnreadableCaseError: the case cannot be read.
        """
        try:
            yield
        except UNREADABLE as error:  # missing, cut off, overwritten or stale; anything else is a mistake in the program
            reason = _reason(case, error)
            if case not in self.unreadable:
                self.unreadable[case] = reason
                logger.warning("Case %s is left out of training where it cannot be read: %s", case, reason)
            raise UnreadableCaseError(reason).about(case=case) from error

    def again(self, make: Callable[[np.random.Generator], T], rng: np.random.Generator) -> T:
        """Return ``make(rng)``, and once more for every case it meets that cannot be read.

        A try begins one number after the one before began, however far that came.

        Raises:
            InputError: too many draws in a row met such cases.
        """
        for _ in range(_MAX_IN_A_ROW):
            state = rng.bit_generator.state
            try:
                return make(rng)
            except UnreadableCaseError:
                rng.bit_generator.state = state
                rng.integers(1 << 32, dtype=np.uint32)  # the smallest step: takes half a number left over, if there is
        raise InputError(
            f"{_MAX_IN_A_ROW} draws in a row met cases that cannot be read, {len(self.unreadable)} cases in all; the "
            f"first: {self.first}"
        ).about(value=len(self.unreadable))

    @property
    def first(self) -> str:
        """Why the first case could not be read, for the message that there are none left."""
        return next(iter(self.unreadable.values()), "none was met")


def _reason(case: str, error: Exception) -> str:
    """Return one sentence that names the case and the fix."""
    if isinstance(error, AliceError):
        return str(error)
    return (
        f"{case}.b2nd, or what anatomy stored of it, cannot be read ({type(error).__name__}: {error}); delete "
        f"{case}.b2nd, preprocess again and run nnunet_alice anatomy."
    )
