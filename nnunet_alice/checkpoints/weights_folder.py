"""A checkpoint as a folder of plain files: tensors as safetensors, the rest as JSON, a checksum of each.

No file of it is a pickle, so reading one runs no code. ``nnunet_alice publish`` writes such folders and ``fetch``
brings them; ``checkpoints.loading.load_checkpoint`` reads them like any checkpoint.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nnunet_alice.checkpoints.saving import plain
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError
from nnunet_alice.files import atomic_write, refusals_told, sha256_of

#: tensors of ``network_weights``, each once and under its own name; all other tensors; the rest of the checkpoint
WEIGHTS, EXTRAS, DESCRIPTION = "model.safetensors", "extras.safetensors", "checkpoint.json"
#: checksums of every other file but the card, in the format of ``sha256sum``; the card is there to be edited
SUMS, CARD = "SHA256SUMS", "README.md"
#: every file that such a folder may hold beside these; nothing else is read, listed or downloaded
COMPANIONS = (
    *("plans.json", "dataset.json", "dataset_fingerprint.json", "LICENSE", "training_cases.txt"),
    *("progress.png", "evaluation.csv", "evaluation.png"),
)
FILES = (CARD, SUMS, DESCRIPTION, WEIGHTS, EXTRAS, *COMPANIONS)

_NETWORK = "network_weights"
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"
#: how PyTorch's files begin: a zip archive, or a bare pickle
_PICKLES = (b"PK\x03\x04", b"\x80")


def is_weights_folder(path: Path) -> bool:
    """Return whether ``path`` is such a folder, or claims to be."""
    return any((path / name).is_file() for name in (SUMS, DESCRIPTION, WEIGHTS))


def content_file(path: Path) -> Path:
    """Return the file that stands for the whole content of a checkpoint: of a folder, its list of checksums."""
    return path / SUMS if path.is_dir() else path


def write_weights_folder(content: Mapping[str, Any], folder: Path) -> None:
    """Write a checkpoint into a folder; ``write_sums`` completes it.

    Tensors that are one piece of memory (nnU-Net's ``encoder.*`` and ``decoder.encoder.*``) are written once.

    Args:
        content: the checkpoint; only what ``checkpoints.saving.plain`` takes, and no bytes.
        folder: where to; made if missing.

    Raises:
        CheckpointError: the content cannot be kept in such files.
        InputError: the folder cannot be written.
    """
    shelf = _Shelf()
    described = shelf.put(plain(content), ())
    with refusals_told(folder):
        for name, tensors in ((WEIGHTS, shelf.network), (EXTRAS, shelf.others)):
            if tensors or name == WEIGHTS:
                with atomic_write(folder / name) as temporary:
                    save_file(tensors, temporary, metadata={"format": "pt"})
        with atomic_write(folder / DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def read_weights_folder(folder: Path) -> dict[str, Any]:
    """Read the checkpoint in a folder, after checking the checksums of all its files.

    Raises:
        DamagedCheckpointError: a file is missing, changed or not of its format.
        CheckpointError: a file is a pickle, or is none that such a folder may hold.
    """
    sums = check_sums(folder)
    tensors = read_safetensors(folder / WEIGHTS)
    if EXTRAS in sums:
        tensors |= read_safetensors(folder / EXTRAS)
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        return {name: _take(value, tensors) for name, value in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(
            f"{folder / DESCRIPTION} does not fit the tensors beside it ({error}); fetch the folder again."
        ).about(path=folder / DESCRIPTION) from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return tensors of a ``.safetensors`` file, on the CPU.

    Raises:
        CheckpointError: the file is a pickle under this name.
        DamagedCheckpointError: it is missing, truncated or of a different format.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] != b"{" and start.startswith(_PICKLES):
            raise UnsafeCheckpointError(
                f"{path} was refused: it is a pickle (PyTorch's .pth), which may run code, and not safetensors."
            ).about(path=path)
        return load_file(path)
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is missing; fetch or copy the folder again.").about(path=path) from None
    except SafetensorError as error:
        raise DamagedCheckpointError(
            f"{path} is truncated or not safetensors ({error}); fetch or copy it again."
        ).about(path=path) from None


def write_sums(folder: Path) -> str:
    """Write the checksums of a folder's files, the card excepted; returns the SHA-256 of that list itself."""
    names = sorted(path.name for path in folder.iterdir() if path.name in FILES and path.name not in (CARD, SUMS))
    text = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    with atomic_write(folder / SUMS) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return sha256_of(folder / SUMS)


def parse_sums(text: str, origin: str | os.PathLike) -> dict[str, str]:
    """Return file name -> SHA-256 of a list of checksums.

    Args:
        text: of the list.
        origin: where it is from, for the message.

    Raises:
        CheckpointError: it is no such list, names a file that is not of such a folder, or lacks the weights.
    """
    sums = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise CheckpointError(f"{origin} is no list of SHA-256 checksums; give a folder that publish wrote.").about(
                path=origin
            )
        if match[2] not in FILES or match[2] == SUMS:
            raise UnsafeCheckpointError(
                f"{origin} was refused: it names {match[2]!r}, which is no file of a published model."
            ).about(path=origin, value=match[2])
        sums[match[2]] = match[1]
    missing = [name for name in (WEIGHTS, DESCRIPTION) if name not in sums]
    if missing:
        raise CheckpointError(f"{origin} does not list {missing[0]}; give a folder that publish wrote.").about(
            path=origin, value=missing[0]
        )
    return sums


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums that a folder brings; see ``parse_sums``.

    Raises:
        CheckpointError: it brings none, or a wrong list.
    """
    try:
        return parse_sums((folder / SUMS).read_text(encoding="utf-8"), folder / SUMS)
    except (FileNotFoundError, UnicodeDecodeError):
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".pth", ".pt", ".bin", ".pkl"))
        hint = f"; {pickles[0]} in it is a pickle, which transfer reads with care" if pickles else ""
        raise CheckpointError(f"{folder} has no {SUMS}, so publish did not write it{hint}.").about(
            path=folder, value=pickles[0] if pickles else None
        ) from None


def check_sums(folder: Path) -> dict[str, str]:
    """Compare every listed file with its checksum; returns the list.

    Raises:
        DamagedCheckpointError: a file is missing or has changed.
        CheckpointError: see ``read_sums``.
    """
    sums = read_sums(folder)
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{path} is missing; fetch or copy the folder again.").about(path=path)
        if sha256_of(path) != expected:
            raise DamagedCheckpointError(
                f"{path} is not the file that was published; fetch or copy the folder again."
            ).about(path=path)
    return sums


class _Shelf:
    """Takes the tensors out of a checkpoint.

    Attributes:
        network: tensors of ``network_weights``, by their own names.
        others: all other tensors, by their path in the checkpoint.
    """

    def __init__(self) -> None:
        self.network: dict[str, torch.Tensor] = {}
        self.others: dict[str, torch.Tensor] = {}
        self._known: dict[int, str] = {}

    def put(self, value: Any, path: tuple[str, ...]) -> Any:
        """Return the value as JSON, its tensors replaced by their names."""
        if isinstance(value, torch.Tensor):
            return {_TENSOR: self._name(value, path)}
        if isinstance(value, tuple):
            return {_TUPLE: [self.put(entry, (*path, str(i))) for i, entry in enumerate(value)]}
        if isinstance(value, list):
            return [self.put(entry, (*path, str(i))) for i, entry in enumerate(value)]
        if isinstance(value, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: self.put(entry, (*path, key)) for key, entry in value.items()}
            return {_ITEMS: [[self.put(k, path), self.put(v, (*path, str(k)))] for k, v in value.items()]}
        if isinstance(value, bytes):
            raise CheckpointError(
                f"The checkpoint's entry {'/'.join(path)} is bytes, which have no place in JSON."
            ).about(value="/".join(path))
        return value

    def _name(self, tensor: torch.Tensor, path: tuple[str, ...]) -> str:
        if id(tensor) not in self._known:
            of_network = path[0] == _NETWORK and len(path) == 2
            name = path[1] if of_network else "/".join(path)
            (self.network if of_network else self.others)[name] = tensor
            self._known[id(tensor)] = name
        return self._known[id(tensor)]


def _take(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the inverse of ``_Shelf.put``."""
    if isinstance(value, list):
        return [_take(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_take(entry, tensors) for entry in value[_TUPLE])
    if _ITEMS in value:
        return {_take(k, tensors): _take(v, tensors) for k, v in value[_ITEMS]}
    return {key: _take(entry, tensors) for key, entry in value.items()}
