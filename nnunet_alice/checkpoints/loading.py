"""Open checkpoints without running what is in them.

A ``.pth`` file is a pickle, and a pickle may call any function when it is opened. Here only data is read: tensors,
plain Python values and the few types that nnU-Net's own ``save_checkpoint`` puts beside them (numpy scalars;
``torch.device`` is data to torch already). A file that asks for anything else is refused, unless its author is trusted.
"""

import errno
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_alice.checkpoints.weights_folder import (
    DESCRIPTION,
    is_weights_folder,
    read_safetensors,
    read_weights_folder,
)
from nnunet_alice.errors import CheckpointError, DamagedCheckpointError, UnsafeCheckpointError
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)

#: where torch and nnU-Net keep the network's tensors, and what wrappers put in front of their names
WEIGHTS_KEY = "network_weights"
_WEIGHTS_ELSEWHERE = (WEIGHTS_KEY, "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_TRUST = "nnunet_alice transfer and export open it with --trust, if you trust its author with your account."


def load_checkpoint(path: str | os.PathLike, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Args:
        path: a file of ours, of nnU-Net or of nnssl; a folder that ``publish`` wrote or ``fetch`` brought, or the
            ``model.safetensors`` in it; or any ``.safetensors`` with a network's tensors.
        trust: open it as an ordinary pickle, which runs whatever code the file contains. Only for files whose author
            you would let use your account.

    Raises:
        DamagedCheckpointError: the file is truncated or not a checkpoint.
        UnsafeCheckpointError: it would run code, and ``trust`` is off.
        CheckpointError: it is missing, cannot be read now (permissions, memory, a failing disk), or needs a package
            that is not installed (and ``trust`` is on).
    """
    path = Path(path)
    if is_weights_folder(path):
        return read_weights_folder(path)
    if path.suffix == ".safetensors" and path.is_file():
        alone = not (path.parent / DESCRIPTION).is_file()
        return {WEIGHTS_KEY: read_safetensors(path)} if alone else read_weights_folder(path.parent)
    if not path.is_file():
        raise CheckpointError(
            f"{path} {'is a folder, not a checkpoint' if path.is_dir() else 'does not exist'}."
        ).about(path=path)
    if trust:
        logger.warning("Opening %s with --trust: code in it, if there is any, runs now.", path)
    content = _read(path, trust)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__} instead of a checkpoint's dict.").about(
            path=path, value=type(content).__name__
        )
    return dict(content)


def _read(path: Path, trust: bool) -> Any:
    """Return whatever the file holds, on the CPU."""
    registered = torch.serialization.get_safe_globals()  # of the host program; leaving the block would take them away
    stock = torch.serialization.safe_globals([kind for kind in _stock_types() if kind not in registered])
    try:
        with stock:
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(path, error) from None
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the package '{error.name or _reason(error)}', which is not installed here; install it first."
        ).about(path=path, value=error.name) from error
    except (MemoryError, OSError, RuntimeError) as error:
        if _is_of_the_machine(error):
            raise CheckpointError(f"{path} cannot be read now ({_reason(error)}); mend that and try again.").about(
                path=path
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # broken files: EOFError, ValueError, KeyError, ...
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path} is truncated or not a checkpoint ({_reason(error)}); copy or download it again."
    ).about(path=path)


def _is_of_the_machine(error: Exception) -> bool:
    """Return whether a sound file would fail in the same way: no memory, no permission, a disk that does not answer."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL)  # a seek before the beginning of a truncated file
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


def network_weights(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return tensors of the network in a loaded checkpoint, without the prefixes of DDP and ``torch.compile``.

    They lie under ``network_weights``; in files of other projects under ``state_dict``, ``model``, or at the top.

    Args:
        checkpoint: from ``load_checkpoint``.
        path: its file, for the error message.

    Raises:
        CheckpointError: there is no ``network_weights``, it is empty, or it holds something else than tensors.
    """
    everything = checkpoint if all(map(torch.is_tensor, checkpoint.values())) else None
    weights = next((checkpoint[key] for key in _WEIGHTS_ELSEWHERE if key in checkpoint), everything)
    if not isinstance(weights, Mapping) or not weights:
        found = ", ".join(str(key) for key in list(checkpoint)[:8]) or "nothing"
        raise CheckpointError(
            f"{path} has no '{WEIGHTS_KEY}' (it holds: {found}); give a checkpoint of this package, nnU-Net or nnssl."
        ).about(path=path, option=WEIGHTS_KEY)
    strange = [name for name, value in weights.items() if not (isinstance(name, str) and torch.is_tensor(value))]
    if strange:
        raise CheckpointError(f"'{WEIGHTS_KEY}' of {path} holds {strange[0]!r}, which is not a tensor.").about(
            path=path, option=WEIGHTS_KEY, value=strange[0]
        )
    return {_without_wrappers(name): tensor for name, tensor in weights.items()}


def finite_weights(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return :func:`network_weights`, to start or to go on from.

    Raises:
        CheckpointError: as there, or a tensor holds NaN or infinity.
    """
    weights = network_weights(checkpoint, path)
    check_finite(weights, path)
    return weights


def check_finite(weights: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Make sure that tensors hold numbers: whatever starts from NaN stays NaN.

    Args:
        weights: name -> tensor.
        path: their file, for the error message.

    Raises:
        CheckpointError: one of them holds NaN or infinity.
    """
    bad = not_finite(weights)
    if bad:
        raise CheckpointError(
            f"{path} holds NaN or infinity in {len(bad)} of its {counted(len(weights), 'tensor')} (the first is "
            f"'{bad[0]}'): its training diverged; take an earlier checkpoint, or train again at a lower learning rate."
        ).about(path=path, value=len(bad))


def not_finite(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]


def first_misfit(
    weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], names: Iterable[str]
) -> tuple[str, tuple | str, tuple | str] | None:
    """Return the first of the names whose tensor is not of the same shape on both sides; None if all fit.

    Args:
        weights: tensors of a file.
        own: tensors of the network that they are for.
        names: what to look at, in this order.

    Returns:
        its name, its shape in the file and in the network; ``missing`` where a side lacks it.
    """
    for name in names:
        there, here = (tuple(side[name].shape) if name in side else "missing" for side in (weights, own))
        if there != here:
            return name, there, here
    return None


def _without_wrappers(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _stock_types() -> list:
    """Return the numpy scalars (numpy 1's and 2's names) that ``nnUNetTrainer.save_checkpoint`` writes.

    Building these runs no foreign code: a scalar is made of a dtype and bytes.
    """
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in ("?", "b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "e", "f", "d")}
    return [
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *sorted(dtypes, key=lambda kind: kind.__name__),
    ]


def _unpickling_error(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """Tell a file that asks for code from one that is broken."""
    # the words of torch's weights-only unpickler; it leaves "builtins." out
    asked = re.search(r"GLOBAL ([\w.]+) (?:was not an allowed|whose module)", str(error))
    if asked:
        name = asked[1] if "." in asked[1] else f"builtins.{asked[1]}"
        return UnsafeCheckpointError(
            f"{path} was refused: opening it would run '{name}', which is no plain data; {_TRUST}"
        ).about(path=path, option="--trust", value=name)
    if zipfile.is_zipfile(path):
        return UnsafeCheckpointError(
            f"{path} was refused: it holds more than plain data ({_reason(error)}); {_TRUST}"
        ).about(path=path, option="--trust")
    return DamagedCheckpointError(f"{path} is truncated or not a checkpoint; copy or download it again.").about(
        path=path
    )


def _reason(error: BaseException) -> str:
    """Return one short line of an error's text, without torch's advice to switch safety off."""
    text = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error).strip()
    line = "".join(filter(str.isprintable, text.partition("\n")[0]))  # it may quote the file, which may hold anything
    return line[:160].rstrip(". ") or type(error).__name__
