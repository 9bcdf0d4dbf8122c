"""Errors that a user can mend, as ``nnUNetv2_train`` shows them: in one sentence, as our own commands do."""

import sys
from types import TracebackType

from nnunet_alice.errors import AliceError


def tell_refusals() -> None:
    """Let errors of this package that nobody catches end the process with their sentence, without a traceback.

    ``nnUNetv2_train`` catches nothing. A hook that somebody else has set stays.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, AliceError):
        sys.stdout.flush()
        print(f"\n{error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
