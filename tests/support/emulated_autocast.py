"""CUDA's mixed precision on CPU tensors: torch's own lists of operations decide what is computed in half precision.

The lists of ``torch.autocast("cuda")`` and ``torch.autocast("cpu")`` differ. Within :func:`cuda_autocast`, operations
on CPU tensors follow CUDA's, read from the header that torch is installed with, and ``torch.autocast("cuda")`` switches
them on. Casts lie above autograd, as on CUDA, so gradients are of half precision where activations are.
"""

import functools
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_KEY = "AutocastCPU"
_LISTS = ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")
#: written out in C++, not in the lists
_PROMOTE_TOO, _FP32_TOO = ("aten::cat", "aten::stack"), ("aten::norm.Scalar", "aten::norm.ScalarOpt_dim")


def cuda_lists() -> dict[str, set[str]]:
    """Names of operations (``aten::mm``) by what CUDA's autocast does with them."""
    header = (Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h").read_text()
    lists = {}
    for kind in _LISTS:
        body = re.search(rf"#define AT_FORALL_{kind}\(_\)(.*?)\n\n", header, re.DOTALL)
        assert body is not None
        entries = re.findall(r"_\((\w+)(?:, (\w+))?\)", body[1])
        lists[kind] = {f"aten::{name}" + (f".{overload}" if overload else "") for name, overload in entries}
    lists["PROMOTE"] |= set(_PROMOTE_TOO)
    lists["FP32"] |= set(_FP32_TOO)
    return lists


def map_tensors(change: Callable, x: Any) -> Any:
    """An operation's arguments or results with all tensors changed.

    Does for tuples, lists and dicts what ``tree_map_only`` of torch's pytree does, whose time is most of that of a
    small operation.
    """
    if isinstance(x, torch.Tensor):
        return change(x)
    if isinstance(x, (tuple, list)):
        return type(x)([map_tensors(change, part) for part in x])
    return {key: map_tensors(change, part) for key, part in x.items()} if isinstance(x, dict) else x


def tensors_in(x: Any) -> list[torch.Tensor]:
    """All tensors of an operation's arguments."""
    found: list[torch.Tensor] = []
    map_tensors(found.append, x)
    return found


class _Autocast(torch.autocast):
    """``torch.autocast`` that takes CUDA for the CPU, in half precision."""

    def __init__(self, device_type: str, dtype=None, enabled: bool = True, cache_enabled=None) -> None:
        super().__init__("cpu", dtype or torch.float16, enabled and device_type == "cuda", cache_enabled)


class _NoAutocast(_Autocast):
    """One that is never switched on."""

    def __init__(self, device_type: str, dtype=None, enabled: bool = True, cache_enabled=None) -> None:
        super().__init__(device_type, dtype, False, cache_enabled)


@contextmanager
def cuda_autocast(half: bool = True) -> Iterator[None]:
    """Within it, ``torch.autocast("cuda")`` works on CPU tensors as it does on CUDA's; without ``half``, not at all."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says which of its own kernels are replaced
        for name, kernel in _kernels().items():
            library.impl(name, kernel, _KEY)
    before = torch.autocast, stock.autocast
    chosen = _Autocast if half else _NoAutocast
    torch.autocast = torch.amp.autocast = stock.autocast = chosen  # type: ignore[misc]  # replaced on purpose
    try:
        yield
    finally:
        torch.autocast, stock.autocast = before  # type: ignore[misc]
        torch.amp.autocast = before[0]  # type: ignore[misc]
        library._destroy()


@functools.cache
def _kernels() -> dict[str, Callable]:
    """Kernel by name for all operations that CUDA's autocast changes, and a plain one where only the CPU's does."""
    lists = cuda_lists()
    kernels = {}
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        kind = next((kind for kind, names in lists.items() if name in names), None)
        if kind is not None:
            kernels[name] = _kernel(_operation(name), kind)
        elif torch._C._dispatch_has_kernel_for_dispatch_key(name, _KEY):
            kernels[name] = torch.library.fallthrough_kernel
    return kernels


def _operation(name: str) -> Callable:
    operation, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, operation), overload or "default")


def _kernel(operation: Callable, kind: str) -> Callable:
    below = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def kernel(*args, **kwargs):
        if kind == "FP32_SET_OPT_DTYPE":
            half = isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float16
            if half and kwargs.get("dtype") is None and not any(isinstance(a, torch.dtype) for a in args):
                kwargs["dtype"] = torch.float32
        else:
            wanted = {"LOWER_PRECISION_FP": torch.float16, "FP32": torch.float32}.get(kind) or _widest(args)
            args, kwargs = map_tensors(lambda x: _cast(x, wanted), (args, kwargs))
        with torch._C._ExcludeDispatchKeyGuard(below):
            return operation(*args, **kwargs)

    return kernel


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype) if x.dtype in (torch.float16, torch.float32) else x


def _widest(args) -> torch.dtype:
    return torch.float32 if torch.float32 in [x.dtype for x in tensors_in(args)] else torch.float16
