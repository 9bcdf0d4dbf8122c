"""Errors that a user can mend: one sentence that names the file or case, and the fix."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

#: Exit status of a command that did its work, but not for all cases; the others are named.
SOME_FAILED = 3
#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130
#: names of cases that a message gives
_NAMED = 3
Told = TypeVar("Told", bound="AliceError")


def named(cases: Sequence[str]) -> str:
    """Return the first cases by name, for a message."""
    return ", ".join(cases[:_NAMED]) + (", ..." if len(cases) > _NAMED else "")


class AliceError(RuntimeError):
    """Base of all errors that the command line shows as one sentence instead of a traceback.

    The sentence says what is wrong, where, and how to mend it. Fields repeat what it names, for programs and tests; a
    field that it does not name is None.

    Attributes:
        case: the case, or the first of several.
        path: file or folder.
        option: argument, setting or key that is wrong or mends it, such as ``-c`` or ``labels``.
        value: what was found and is not usable.
        command: the command that mends it, or how it begins.
        column: column of a table.
    """

    case: str | None = None
    path: Path | None = None
    option: str | None = None
    value: Any = None
    command: str | None = None
    column: str | None = None

    def about(
        self: Told,
        *,
        case: str | None = None,
        path: str | os.PathLike[str] | None = None,
        option: str | None = None,
        value: Any = None,
        command: str | None = None,
        column: str | None = None,
    ) -> Told:
        """Set fields and return the error: ``raise InputError(f"{path} does not exist.").about(path=path)``."""
        self.case, self.option, self.value, self.command, self.column = case, option, value, command, column
        self.path = None if path is None else Path(path)
        return self

    def __reduce__(self) -> tuple:
        """Pickle sentence and fields, whatever a subclass takes: errors come back from process pools."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[AliceError], args: tuple, fields: dict[str, Any]) -> AliceError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class InputError(AliceError):
    """A file, folder or argument that the user gave is not usable."""


class MissingFileError(InputError):
    """A file or folder that the user named does not exist, or is of the other kind."""


class OccupiedError(InputError):
    """What was to be written would replace something different, which has to be deleted or kept."""


class UnknownTrainerError(InputError, AttributeError):
    """No trainer has this name; ``hasattr``, by which nnU-Net looks, takes it as a no."""


class NotPreparedError(AliceError):
    """A step that has to run first has not run; the message names its command."""


class StaleError(NotPreparedError):
    """The step has run, but on something that has changed since."""


class CheckpointError(AliceError):
    """A checkpoint is unreadable, incomplete, unsafe or of a different family."""


class DamagedCheckpointError(CheckpointError):
    """The file is truncated or no checkpoint at all."""


class UnsafeCheckpointError(CheckpointError):
    """The file holds or names code, which loading it might run."""


class NonFiniteLossError(AliceError):
    """The loss or the gradients were NaN or infinite in several steps in a row.

    Args, and attributes:
        steps: how many.
        epoch: when.
        cases: names of the cases in the last batch.
        slower: name of the same trainer with a lower learning rate.
        what: what was not finite, ``loss`` or ``gradients``.
    """

    def __init__(self, steps: int, epoch: int, cases: Iterable[str], slower: str, what: str = "loss") -> None:
        self.steps, self.epoch, self.slower, self.what = steps, epoch, slower, what
        self.cases = [str(case) for case in cases]
        subject = "loss was" if what == "loss" else "gradients were"
        super().__init__(
            f"The {subject} not finite in {steps} steps in a row, the last in epoch {epoch} on the cases "
            f"{', '.join(self.cases)}: look at their intensities, or start again with a lower learning rate, "
            f"-tr {slower} (--c would only repeat these steps)."
        )
