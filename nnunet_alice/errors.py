"""Errors that a user can mend: one sentence that names the file or case, and the fix."""

from collections.abc import Iterable, Sequence

#: Exit status of a command that did its work, but not for all cases; the others are named.
SOME_FAILED = 3
#: names of cases that a message gives
_NAMED = 3


def named(cases: Sequence[str]) -> str:
    """The first cases by name, for a message."""
    return ", ".join(cases[:_NAMED]) + (", ..." if len(cases) > _NAMED else "")


class AliceError(RuntimeError):
    """Base of all errors that the command line shows as one sentence instead of a traceback."""


class InputError(AliceError):
    """A file, folder or argument that the user gave is not usable."""


class UnknownTrainerError(InputError, AttributeError):
    """No trainer has this name; ``hasattr``, by which nnU-Net looks, takes it as a no."""


class NotPreparedError(AliceError):
    """A step that has to run first has not run; the message names its command."""


class CheckpointError(AliceError):
    """A checkpoint is unreadable, incomplete, unsafe or of another family."""


class DamagedCheckpointError(CheckpointError):
    """The file is truncated or no checkpoint at all."""


class NonFiniteLossError(AliceError):
    """The loss or the gradients were NaN or infinite in several steps in a row.

    Args:
        steps: how many.
        epoch: when.
        cases: names of the cases in the last batch.
        slower: name of the same trainer with a lower learning rate.
        what: what was not finite, ``loss`` or ``gradients``.
    """

    def __init__(self, steps: int, epoch: int, cases: Iterable[str], slower: str, what: str = "loss") -> None:
        subject = "loss was" if what == "loss" else "gradients were"
        super().__init__(
            f"The {subject} not finite in {steps} steps in a row, the last in epoch {epoch} on the cases "
            f"{', '.join(cases)}: look at their intensities, or start anew with a lower learning rate, -tr {slower} "
            "(--c would only repeat these steps)."
        )
