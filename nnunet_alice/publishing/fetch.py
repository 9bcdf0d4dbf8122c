"""Bring a published model here: from a folder, the Hugging Face hub or a web server; checked, kept, used offline."""

import os
import re
from pathlib import Path

from filelock import FileLock

from nnunet_alice.checkpoints.weights_folder import FILES, SUMS, check_sums, parse_sums, read_weights_folder
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError, InputError
from nnunet_alice.files import sha256_of
from nnunet_alice.publishing.download import download

#: names a different folder than ``~/.cache/nnunet_alice`` for what was fetched
CACHE_VARIABLE = "NNUNET_ALICE_CACHE"
_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def cache_folder() -> Path:
    """Return the folder for fetched models: ``NNUNET_ALICE_CACHE``, or one in the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nnunet_alice"


def fetch(source: str, sha256: str | None = None, cache: str | os.PathLike | None = None) -> Path:
    """Return the folder of a published model, all of whose files have been checked.

    A model that was fetched before is taken from the cache where the network does not answer (hub), or always (web
    server: its checksum says that it is the same).

    Args:
        source: ``hf:owner/name`` or ``hf:owner/name@revision``, the address of a folder on a web server, or a folder.
        sha256: of the folder's ``SHA256SUMS``, as ``publish`` printed it; needed for a web server, checked if given.
        cache: folder for what is fetched; ``cache_folder`` by default.

    Raises:
        InputError: there is no such model, or the network breaks off.
        CheckpointError: a file is damaged, changed, a pickle, or none that a published model has.
    """
    cache = cache_folder() if cache is None else Path(cache)
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.lower()):
        raise InputError(f"--sha256 {sha256} is no SHA-256: 64 hexadecimal digits.").about(
            option="--sha256", value=sha256
        )
    if source.startswith("hf:"):
        folder = _from_hub(source, cache / "hub")
        try:
            check_sums(folder)
        except DamagedCheckpointError:  # in the cache, or on the way
            folder = _from_hub(source, cache / "hub", again=True)
    elif re.match(r"https?://", source):
        if sha256 is None:
            raise InputError(f"{source} needs --sha256: the checksum of its {SUMS}, which its publisher tells.").about(
                option="--sha256", value=source
            )
        folder = _from_server(source.rstrip("/").removesuffix(f"/{SUMS}"), sha256, cache / "web")
    else:
        folder = Path(source)
        if not folder.is_dir():
            raise InputError(f"{source} is no folder, no address and no hf:owner/name; give one of these.").about(
                value=source
            )
    read_weights_folder(folder)
    if sha256 is not None and sha256_of(folder / SUMS) != sha256:
        raise CheckpointError(
            f"{source} is a different model than that of --sha256: its {SUMS} has a different checksum."
        ).about(option="--sha256", value=source)
    return folder


def _from_server(address: str, sha256: str, cache: Path) -> Path:
    """Return every file of a folder on a web server, by its list of checksums."""
    folder = cache / sha256[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        download(f"{address}/{SUMS}", folder / SUMS, sha256)
        text = (folder / SUMS).read_text(encoding="utf-8")
        for name, checksum in parse_sums(text, f"{address}/{SUMS}").items():
            download(f"{address}/{name}", folder / name, checksum)
    return folder


def _from_hub(source: str, cache: Path, again: bool = False) -> Path:
    """Return snapshot of a repository on the Hugging Face hub; only files that a published model has are downloaded.

    Args:
        source: as of ``fetch``.
        cache: the hub's cache.
        again: download files that are in the cache, too.
    """
    match = _HUB.fullmatch(source)
    if match is None:
        raise InputError(f"{source} is not of the form hf:owner/name or hf:owner/name@revision.").about(value=source)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise InputError("The Hugging Face hub needs a package more: pip install 'nnunet_alice[hub]'.").about(
            command="pip install 'nnunet_alice[hub]'"
        ) from None
    try:
        return Path(
            snapshot_download(
                match[1], revision=match[2], cache_dir=cache, allow_patterns=list(FILES), force_download=again
            )
        )
    except RepositoryNotFoundError:
        raise InputError(f"{source} is not on the hub, or private: log in with 'hf auth login'.").about(
            value=source, command="hf auth login"
        ) from None
    except LocalEntryNotFoundError:
        raise InputError(f"{source} was never fetched, and the hub does not answer; try again with a network.").about(
            value=source
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{source} cannot be fetched ({reason}); run the command again, it goes on from there.").about(
            value=source
        ) from None
