"""Checkpoints that are whole or absent, and hold nothing but CPU tensors and plain Python values.

Such a file is read by ``torch.load(..., weights_only=True)`` on any machine: no code runs while it is opened, no GPU
is needed, and no class of ours, of numpy or of nnU-Net has to be importable.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_alice.errors import CheckpointError
from nnunet_alice.files import atomic_write

#: a part-written file of a saver that was killed is removed once it is this old
STALE_AFTER_SECONDS = 3600.0


def plain(content: Any) -> Any:
    """Copy of ``content`` that holds only CPU tensors and plain Python values.

    - Tensors (parameters too) are detached, copied to the CPU and made contiguous; a view of a large storage takes
      only its own room. Tensors that are the same piece of memory (nnU-Net's ``encoder.*`` and ``decoder.encoder.*``)
      stay one, so that the file holds them once.
    - numpy scalars become Python's; numpy arrays become tensors (``.numpy()`` gives them back).
    - Mappings become ``dict``, named tuples and ``torch.Size`` become ``tuple``, ``torch.device`` becomes ``str``.

    The result shares no memory with ``content``: training may go on while it is written.

    Raises:
        CheckpointError: something else is in there (an object, a function, a set, ...); the message names its key.
    """
    return _plain(content, "", {})


def save_checkpoint(content: dict, path: str | os.PathLike) -> None:
    """Write ``plain(content)`` to ``path`` so that a kill at any moment leaves the old file or the new one.

    Args:
        content: the checkpoint, e.g. ``{"network_weights": network.state_dict(), ...}``.
        path: usually ``*.pth``; its folder is made if missing.

    Raises:
        CheckpointError: ``content`` is not a dict, holds what ``plain`` refuses, or cannot be written (disk full, no
            permission); an old file at ``path`` is then untouched.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"A checkpoint is a dict, not {type(content).__name__}: {path} was not written.").about(
            path=path, value=type(content).__name__
        )
    content = plain(content)
    try:
        with whole_checkpoint(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} could not be written ({reason}); free space or choose a different folder."
        ).about(path=path, value=reason) from error


@contextmanager
def whole_checkpoint(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write a large checkpoint to, as ``atomic_write``; remove what killed savers left.

    Yields:
        the temporary path to write to.
    """
    path = Path(path)
    _remove_stale_parts(path)
    with atomic_write(path) as temporary:
        yield temporary


def _remove_stale_parts(path: Path) -> None:
    """Remove what killed savers of this very file left (``.name.<random>.pth``); recent ones may still be in use."""
    for part in path.parent.glob(f".{path.name}.*{path.suffix}"):
        try:
            if time.time() - part.stat().st_mtime > STALE_AFTER_SECONDS:
                part.unlink()
        except OSError:
            continue  # somebody else removed it, or it is not ours to remove: no reason to lose this checkpoint


def _plain(value: Any, name: str, copies: dict[tuple, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """Do the recursive part of ``plain``; ``copies`` maps a piece of memory to its tensor and the copy."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):  # subclasses (enums, numpy.float64, numpy.str_) would be pickled by class
        return str.__str__(value)
    kinds: tuple[type[Any], ...] = (int, float, bytes)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, torch.Tensor):
        return _plain_tensor(value, name, copies)
    if isinstance(value, np.ndarray):
        return _plain_array(value, name)
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain_key(k, name): _plain(v, f"{name}[{k!r}]", copies) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, f"{name}[{i}]", copies) for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return tuple(_plain(v, f"{name}[{i}]", copies) for i, v in enumerate(value))
    raise _refused(name, type(value).__qualname__)


def _plain_key(key: Any, name: str) -> Any:
    if isinstance(key, torch.Tensor | np.ndarray):
        raise _refused(name, f"dict with a {type(key).__name__} as key")
    return _plain(key, f"{name}[{key!r}] (the key itself)", {})


def _plain_tensor(
    tensor: torch.Tensor, name: str, copies: dict[tuple, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise _refused(name, "sparse, quantized or meta tensor")
    tensor = tensor.detach()
    memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    if memory in copies:
        return copies[memory][1]
    if tensor.device.type == "cpu":
        copy = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    else:
        copy = tensor.cpu().contiguous()
        if copy.untyped_storage().nbytes() > copy.numel() * copy.element_size():
            copy = copy.clone()
    if type(copy) is not torch.Tensor:  # other subclasses would be pickled by class
        copy = copy.as_subclass(torch.Tensor)
    copies[memory] = tensor, copy  # the tensor is kept too: freed memory would be given to the next one
    return copy


def _plain_array(array: np.ndarray, name: str) -> torch.Tensor:
    try:
        # newbyteorder: torch knows only the machine's own byte order
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True))
    except TypeError:
        raise _refused(name, f"numpy array of dtype {array.dtype}") from None


def _refused(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint's entry {name or '(top level)'} is a {what}; "
        "only tensors, numbers, strings, bytes, None, dicts, lists and tuples can be saved."
    ).about(option=name or None, value=what)
