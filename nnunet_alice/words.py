"""Words for messages: numbers that agree with their nouns, commands to paste, the telling part of an error's text."""

import errno
import re
import shlex
from pathlib import Path

from nnunet_alice.errors import AliceError

#: longest text of somebody else's error that is passed on
_MAX_LENGTH = 300
#: what SimpleITK puts before what it has to say, and the address of the object that says it
_ITK = re.compile(r".*?(?:s?itk::|ITK )ERROR: (?:\w+\(0x[0-9a-f]+\): )?(?:ERROR: )?", re.DOTALL)
_MISSING = re.compile(r'The file "(?P<file>.+)" does not exist')
_UNREAD = re.compile(r"File cannot be read: (?P<file>.+) for reading")
_UNKNOWN_CONTENT = re.compile(r'Unable to determine ImageIO reader for "(?P<file>.*)"')
#: words of SimpleITK that name no cause a user would recognise -> ours
_TRANSLATED = (
    ("Bad direction, determinant is 0", "its direction matrix is singular (determinant 0): no axis points anywhere"),
    ("only supports orthonormal direction cosines", "its axes are not at right angles, which SimpleITK does not read"),
)
#: words of libraries that could not write, of which none says why
_UNWRITTEN = ("iostream error", "creating the NDArray", "failed to write image", "cannot be written", "couldn't fopen")
#: what can be done about what the system refuses
_MENDS = {
    errno.ENOSPC: "free space, or choose a different disk",
    errno.EDQUOT: "free space, or ask for more: your quota is used up",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "look at the permissions, or choose a different folder",
    errno.EPERM: "look at the permissions, or choose a different folder",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file lies where a folder is wanted; check the path",
    errno.EISDIR: "a folder lies where a file is wanted; check the path",
    errno.EEXIST: "a file lies where a folder is wanted; check the path",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n), or use fewer processes",
    errno.ESTALE: "the network disk lost the file; mount it again",
    errno.EIO: "the disk does not answer; look at it",
}
_MEMORY = ("allocate memory", "Unable to allocate", "out of memory", "bad_alloc")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun in the right form: ``1 case``, ``2 cases``.

    Args:
        number: how many.
        noun: for one.
        plural: for none and many; the noun with an ``s`` by default.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def pasteable(*words: object) -> str:
    """Return words of a command as a line for a shell, those with spaces or other special signs quoted."""
    return shlex.join(map(str, words))


def mend(error: OSError) -> str:
    """Return what can be done about something that the system refused."""
    return _MENDS.get(error.errno or 0, "see permissions and space")


def telling(error: BaseException) -> str:
    """Return what an error's text tells, on one line and without a full stop at its end.

    Libraries begin with the place in their source, go on for several lines, or say nothing at all. The first line alone
    is hardly ever the one that helps.

    Args:
        error: any exception; a text of ours is passed on as it is.
    """
    text = str(error).strip()
    if isinstance(error, AliceError):
        return text.rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY):
        return "there is not enough memory; use fewer processes"
    if isinstance(error, RuntimeError) and _ITK.match(text):
        text = _telling_of_itk(_ITK.sub("", text, count=1))
    if any(words in text for words in _UNWRITTEN):
        text = f"{text.rstrip('.')} (no space left, or no permission to write there?)"
    kind = type(error).__name__
    return kind if not text else _shortened(text if isinstance(error, RuntimeError) else f"{kind}: {text}")


def _telling_of_itk(text: str) -> str:
    """Return what SimpleITK says once its preamble is gone."""
    if found := _MISSING.search(text):
        return f"{found['file']} does not exist"
    if (found := _UNREAD.search(text)) and Path(found["file"]).is_file():  # it says: no such file
        return f"{found['file']} ends early, or its header is damaged"
    if found := _UNKNOWN_CONTENT.search(text):
        return _content_of(Path(found["file"]))
    for theirs, ours in _TRANSLATED:
        if theirs in text:
            return ours
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[-1].startswith("[nrrd]"):  # a chain of calls: what was read, and why not
        lines = [lines[0], lines[-1].removeprefix("[nrrd]").partition(":")[2]]
    return " ".join(lines)


def _content_of(path: Path) -> str:
    """Return what a file is, by its first bytes, that SimpleITK could not tell."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        return telling(error)
    if not start:
        return f"{path} is empty (0 bytes)"
    if start[:2] == b"\x1f\x8b" and path.suffix.lower() != ".gz":
        return f"{path} is compressed but its name does not say so; rename it to {path.name}.gz"
    return f"{path} is not what its name says: no reader knows its content"


def _shortened(text: str) -> str:
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split()).rstrip(".")
    return line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH].rsplit(' ', 1)[0]} ..."
