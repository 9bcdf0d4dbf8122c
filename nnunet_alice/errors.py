"""Errors that a user can mend: one sentence that names the file or case, and the fix."""


class AliceError(RuntimeError):
    """Base of all errors that the command line shows as one sentence instead of a traceback."""


class InputError(AliceError):
    """A file, folder or argument that the user gave is not usable."""


class NotPreparedError(AliceError):
    """A step that has to run first has not run; the message names its command."""


class CheckpointError(AliceError):
    """A checkpoint is unreadable, incomplete, unsafe or of another family."""


class NonFiniteLossError(AliceError):
    """The loss became NaN or infinite; the message names the cases."""
