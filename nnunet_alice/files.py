"""Files that are whole or absent (written beside their place, then renamed), and the checksums that tell them apart."""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.words import mend, telling

if TYPE_CHECKING:
    import pandas as pd

#: bytes of each end of a file that its checksum looks at
_CHECKED_BYTES = 1 << 16
#: cells of a table that stand for no value; ``None`` and ``null`` may be names of classes
_NO_VALUE = ["", "NA", "N/A", "n/a", "#N/A", "NaN", "nan"]


@contextmanager
def atomic_write(path: str | os.PathLike, inside: str | os.PathLike | None = None) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; rename it to ``path`` when the block ends well.

    A kill at any moment leaves either the old file or the new one, never a part. The temporary name keeps the
    suffix of ``path`` (libraries choose formats by it) and starts with a dot.

    Args:
        path: the file to write; its folder is made if missing.
        inside: folder of the temporary file, on the same disk, where what a kill leaves would be taken for data in
            the folder of ``path``; made if missing.

    Yields:
        the temporary path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    folder = path.parent if inside is None else Path(inside)
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside ``target``; put it in place of ``target`` when the block ends well.

    A kill leaves the old folder, none or the new one, and hidden ones beside it that the next call clears up.

    Yields:
        the empty folder to write into.
    """
    new, old = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    _clear_up(target, new, old)
    new.mkdir(parents=True)
    try:
        yield new
        if target.exists():
            target.replace(old)
        new.replace(target)
    finally:
        _clear_up(target, new, old)


def _clear_up(target: Path, new: Path, old: Path) -> None:
    if old.exists() and not target.exists():  # stopped between the two renamings
        old.replace(target)
    for folder in (new, old):
        if folder.exists():
            shutil.rmtree(folder)


def link_file(original: Path, link: Path) -> None:
    """Link a file: a symbolic link, or a hard link where those are not allowed; a link that is there already stays."""
    try:
        link.symlink_to(original)
    except FileExistsError:
        return
    except OSError:
        os.link(original, link)


@contextmanager
def refusals_told(path: str | os.PathLike) -> Iterator[None]:
    """Turn what the file system refuses while ``path`` is written (no space, no permission) into one sentence.

    Raises:
        InputError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror or error}); {mend(error)}.").about(
            path=path
        ) from error


def _umask() -> int:
    """Return current umask; ``mkstemp`` makes files that only their owner can read, unlike every other nnU-Net file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: str | os.PathLike, table: "pd.DataFrame", float_format: str | None = None) -> None:
    """Write a table without its index, whole or not at all."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format=float_format)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist.").about(path=path) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete it and run the step that writes it.").about(
            path=path
        ) from None


def read_table(path: str | os.PathLike) -> "pd.DataFrame":
    """Return a CSV file as text, without blanks around cells and headers, and with NaN where a cell is empty or NA.

    Raises:
        InputError: it is missing or no table, its cells are not separated by commas, or two columns have one name.
    """
    import pandas as pd

    try:
        # without a header, else a row with a cell more would move all columns, and age would be renamed beside age
        header = pd.read_csv(path, dtype=str, keep_default_na=False, header=None, nrows=1)
        _check_commas(path, header.iloc[0].tolist())
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist; give a CSV table.").about(path=path) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a CSV table ({telling(error)}).").about(path=path) from None
    rows = rows.apply(lambda column: column.str.strip())
    names = [name or f"Unnamed: {number}" for number, name in enumerate(rows.iloc[0])]
    table = rows.iloc[1:].reset_index(drop=True).set_axis(names, axis=1)
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise InputError(f"{path} has two columns '{twice}' where blanks do not count; rename one.").about(
            path=path, column=twice
        )
    return table.mask(table.isin(_NO_VALUE))


def _check_commas(path: str | os.PathLike, header: list[str]) -> None:
    """Refuse a table of one column whose name holds what some spreadsheets write in place of commas.

    Raises:
        InputError: its cells are separated otherwise.
    """
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise InputError(f"{path} has {name} where commas are expected; save it with commas.").about(path=path)


def file_checksum(path: Path) -> str | None:
    """Return a cheap checksum of a file, None without one; a file that took its name later has a different one.

    Its size and a checksum of its ends. A time would change when the dataset is copied to a different disk, and reading
    all of it would take as long as training.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            checksum = zlib.crc32(file.read(_CHECKED_BYTES))
            file.seek(max(0, size - _CHECKED_BYTES))
            return f"{size}-{zlib.crc32(file.read(), checksum):08x}"
    except FileNotFoundError:
        return None


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    checksum = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            checksum.update(block)
    return checksum.hexdigest()
