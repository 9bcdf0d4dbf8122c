"""Errors that a user can mend: one sentence that names the file or case, and the fix."""

from collections.abc import Iterable, Sequence

#: names of cases that a message gives
_NAMED = 3


def named(cases: Sequence[str]) -> str:
    """The first cases by name, for a message."""
    return ", ".join(cases[:_NAMED]) + (", ..." if len(cases) > _NAMED else "")


class AliceError(RuntimeError):
    """Base of all errors that the command line shows as one sentence instead of a traceback."""


class InputError(AliceError):
    """A file, folder or argument that the user gave is not usable."""


class NotPreparedError(AliceError):
    """A step that has to run first has not run; the message names its command."""


class CheckpointError(AliceError):
    """A checkpoint is unreadable, incomplete, unsafe or of another family."""


class DamagedCheckpointError(CheckpointError):
    """The file is truncated or no checkpoint at all."""


class NonFiniteLossError(AliceError):
    """The loss became NaN or infinite.

    Args:
        epoch: when.
        cases: names of the cases in the batch.
        folder: where the last good checkpoint is.
    """

    def __init__(self, epoch: int, cases: Iterable[str], folder: str) -> None:
        super().__init__(
            f"The loss is not finite in epoch {epoch}, on the cases {', '.join(cases)}: look at their intensities or "
            f"lower the learning rate, then continue with --c from the last checkpoint in {folder}."
        )
