"""Three values, one an axis, as a tuple whose length is known."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Return three values, (z, y, x), as a tuple whose length is known.

    Raises:
        ValueError: there are not three.
    """
    z, y, x = values
    return z, y, x
