"""Download a file whose checksum is known, go on where an earlier attempt broke off, keep nothing else."""

import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from nnunet_alice.errors import DamagedCheckpointError, InputError
from nnunet_alice.files import sha256_of

logger = logging.getLogger(__name__)

#: attempts in one call, each of which goes on from what the last one left
ATTEMPTS = 3
TIMEOUT_S = 30
_BLOCK = 1 << 20


def download(url: str, target: Path, sha256: str) -> None:
    """Bring ``url`` to ``target``; nothing is done where the right file is there already.

    What arrived of a broken download stays beside the target as ``<name>.part``, and the next call goes on from there.

    Args:
        url: of a file, http or https.
        target: the file to write; its folder is made if missing.
        sha256: of the whole file, in hexadecimal digits.

    Raises:
        InputError: the server refuses, or breaks off every time.
        DamagedCheckpointError: the file there has a different checksum.
    """
    if target.is_file() and sha256_of(target) == sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    resumed = part.is_file()
    _whole(url, part)
    if sha256_of(part) != sha256 and resumed:  # the part was of a different file, so once more from the beginning
        part.unlink()
        _whole(url, part)
    if sha256_of(part) != sha256:
        part.unlink()
        raise DamagedCheckpointError(
            f"{url} is not the file that was published: its checksum is a different one."
        ).about(value=url)
    part.replace(target)


def _whole(url: str, part: Path) -> None:
    """Fill ``part`` to the end of the file, in several attempts."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            missing = _more(url, part)
        except urllib.error.HTTPError as error:
            raise InputError(f"{url} cannot be fetched: {error.code} {error.reason}; look at the address.").about(
                value=url
            ) from None
        except (OSError, http.client.HTTPException) as error:
            missing, reason = True, f" ({getattr(error, 'reason', error)})"
        if not missing:
            return
        logger.info("%s broke off%s; going on.", url, reason)
    size = part.stat().st_size if part.is_file() else 0
    raise InputError(
        f"{url} broke off after {size} bytes{reason}; run the command again, it goes on from there."
    ).about(value=url)


def _more(url: str, part: Path) -> bool:
    """Append what the server gives; returns whether anything is still missing."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing beyond what is there
            return False
        raise
    with response:
        if response.status != 206:
            have = 0  # a server that does not know ranges begins again
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is not None and part.stat().st_size < total
