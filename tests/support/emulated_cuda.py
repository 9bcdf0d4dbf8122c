"""A CUDA device without a GPU: CPU tensors that say they lie on ``cuda:0``, and what they would have cost there.

Within :func:`emulated_cuda` trainers run as they would on a GPU: their tensors are labelled, mixed devices raise,
``torch.autocast("cuda")`` takes CUDA's lists of operations
(:mod:`support.emulated_autocast`), and the gradient scaler scales.
Counted are the places where the host would wait for the device, and the bytes of all labelled tensors that are alive.

Underneath, every operation runs on the CPU; on the ``meta`` device, where no number is computed, networks of full size
take seconds. There a number that the host asks for is 0.
"""

import traceback
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

from support.emulated_autocast import cuda_autocast, map_tensors, tensors_in

CUDA = torch.device("cuda", 0)
#: the CPU, where Python asks for it; C++ code that reads the device off a labelled tensor says ``cpu`` without a number
_HOST = torch.device("cpu", 0)
_aten = torch.ops.aten
#: the host waits for numbers, or for the size of a result
_WAITS = {
    _aten._local_scalar_dense,
    _aten._linalg_check_errors,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_dim,
    _aten.equal,
    _aten.is_nonzero,
    _aten.bincount,
    _aten.repeat_interleave,
}
#: these take minutes in half precision on a CPU without units for it; rounded afterwards, they are equal
_BY_FLOAT32 = {
    *(_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm),
    *(_aten.convolution, _aten.convolution_backward, _aten.native_batch_norm, _aten.native_batch_norm_backward),
}


class MixedDevicesError(AssertionError):
    """An operation got tensors of the CPU and of CUDA."""


class CudaTensor(torch.Tensor):
    """A tensor that says it lies on ``cuda:0``; its numbers are in ``held``, on the CPU or on ``meta``."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        label = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cpu"),  # autograd would ask a CUDA device for its stream
        )
        label.held = inner
        return label

    def __init__(self, inner: torch.Tensor) -> None:
        pass

    def __repr__(self, *, tensor_contents=None) -> str:  # type: ignore[override]  # nameless in torch's stub
        return f"CudaTensor({self.held})"

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def cpu(self, *args, **kwargs) -> torch.Tensor:
        return self.to("cpu")

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self):
        return self.to("cpu").tolist()

    def to(self, *args, copy: bool = False, **kwargs) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):  # torch's parser would read a label's device from C++
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        dtype = dtype or self.dtype
        if device is not None and device.type == "cpu":
            return _aten._to_copy(self, dtype=dtype, device=_HOST, non_blocking=non_blocking)
        return self if dtype == self.dtype and not copy else _aten._to_copy(self, dtype=dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of emulated_cuda()")


class EmulatedCuda(TorchDispatchMode):
    """Runs operations on labelled tensors, and keeps count.

    Args:
        inner: device of the numbers, ``cpu`` or ``meta``.

    Attributes:
        waits: a line for each time that the host waited for the device: operation and the line of code that did it.
        live: bytes of all labelled tensors that are alive.
        peak: most of these at one time.
    """

    def __init__(self, inner: str = "cpu") -> None:
        super().__init__()
        self.inner = torch.device(inner)
        self.waits: list[str] = []
        self.operations: set = set()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def forget(self) -> None:
        """Count from here on."""
        self.waits.clear()
        self.operations.clear()
        self.peak = self.live

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        labelled = [x for x in tensors if isinstance(x, CudaTensor)]
        plain = [x for x in tensors if not isinstance(x, CudaTensor)]
        device = kwargs.get("device")
        in_backward = torch._C._current_graph_task_id() != -1
        if device is not None and device.type == "cpu" and device.index is None and (labelled or in_backward):
            device = CUDA
        if not labelled and (device is None or device.type != "cuda"):
            return func(*args, **kwargs)
        self.operations.add(func.overloadpacket)
        self._check_devices(func, labelled, plain, kwargs)
        self._note_wait(func, labelled, plain, device, args, kwargs)
        if func is _aten._local_scalar_dense.default:
            return func(args[0].held) if self.inner.type == "cpu" else args[0].dtype.is_floating_point * 0.0
        to_host = device is not None and device.type != "cuda"
        if to_host and self.inner.type == "meta":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if device is not None:
            kwargs = kwargs | {"device": device if to_host else self.inner}
        inner_args, inner_kwargs = map_tensors(self._unwrap, (args, kwargs))
        result = _run(func, inner_args, inner_kwargs)
        if to_host or (func is _aten.copy_.default and not isinstance(args[0], CudaTensor)):
            return args[0] if func is _aten.copy_.default else result
        result = map_tensors(self._wrap, result)
        return return_and_correct_aliasing(func, args, kwargs, result)

    def _check_devices(self, func, labelled, plain, kwargs) -> None:
        moves = func.overloadpacket in (_aten._to_copy, _aten.copy_)
        indexes = func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_)
        if labelled and not moves and not indexes and any(x.ndim for x in plain):
            shapes = [tuple(x.shape) for x in plain]
            raise MixedDevicesError(f"{func} got tensors of the CPU, {shapes}, among those of cuda:0")

    def _note_wait(self, func, labelled, plain, device, args, kwargs) -> None:
        packet = func.overloadpacket
        if packet is _aten._to_copy:
            between = bool(labelled) != (device is None or device.type == "cuda")
            waits = between and not kwargs.get("non_blocking")
        elif packet is _aten.copy_:  # a plain number is no copy, but written by a kernel (``x[0] = 1``)
            waits = any(x.ndim for x in plain) and not ((len(args) > 2 and args[2]) or kwargs.get("non_blocking"))
        elif packet in (_aten.index, _aten.index_put, _aten.index_put_):
            waits = any(x is not None and (x.dtype == torch.bool or not isinstance(x, CudaTensor)) for x in args[1])
        else:
            waits = packet in _WAITS
        if waits:
            self.waits.append(f"{func} {_caller()}")

    def _unwrap(self, x):
        if isinstance(x, CudaTensor):
            return x.held
        return x.to("meta") if self.inner.type == "meta" else x

    def _wrap(self, inner: torch.Tensor) -> CudaTensor:
        storage = inner.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            self._storages[key] = weakref.ref(storage, lambda _: self._free(key, size))
        return CudaTensor(inner)

    def _free(self, key: int, size: int) -> None:
        del self._storages[key]
        self.live -= size


def _run(func, args, kwargs):
    """An operation on unlabelled tensors."""
    if func.overloadpacket not in _BY_FLOAT32:
        return func(*args, **kwargs)
    if not any(x.dtype == torch.float16 for x in tensors_in(args)):
        return func(*args, **kwargs)
    wide = map_tensors(lambda x: x.float() if x.dtype == torch.float16 else x, args)
    result = func(*wide, **kwargs)
    if func.overloadpacket is _aten.native_batch_norm:  # statistics stay in full precision
        return result[0].half(), *result[1:]
    if func.overloadpacket is _aten.native_batch_norm_backward:
        return result[0].half(), *result[1:]
    return map_tensors(torch.Tensor.half, result)


def _caller() -> str:
    """The innermost line of this package (or of nnU-Net) that is being run."""
    for frame in reversed(traceback.extract_stack()):
        if (
            any(part in frame.filename for part in ("nnunet_alice", "/trainers/", "nnunetv2"))
            and "audit" not in frame.filename
        ):
            return f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.line}"
    return "elsewhere"


@contextmanager
def emulated_cuda(inner: str = "cpu", half: bool = True) -> Iterator[EmulatedCuda]:
    """A CUDA device; ``inner`` as of :class:`EmulatedCuda`, without ``half`` mixed precision is off."""
    answers = {"is_available": True, "get_device_name": "emulated", "device_count": 1}
    answers |= dict.fromkeys(("_lazy_init", "empty_cache", "synchronize"))
    with ExitStack() as stack:
        stack.enter_context(cuda_autocast(half))
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=answer: answer))
        stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch.backends.cudnn, "version", lambda: 0))
        stack.enter_context(patch.object(torch, "load", _loaded))
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch._C._ensureCUDADeviceGuardSet()
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        yield stack.enter_context(EmulatedCuda(inner))


_group = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists, *args):
    """torch's grouping for optimisers and clipping reads devices from C++, where labelled tensors are on the CPU."""
    found = _group(lists, *args)
    labelled = any(isinstance(x, CudaTensor) for tensors in lists for x in tensors)
    return {(CUDA, dtype): group for (_, dtype), group in found.items()} if labelled else found


_load = torch.load


def _loaded(file, map_location=None, **options):
    """Checkpoints that are asked for on CUDA: read on the CPU, then labelled."""
    content = _load(file, map_location="cpu", **options)
    if map_location is None or torch.device(map_location).type != "cuda":
        return content
    return tree_map_only(torch.Tensor, lambda x: x if isinstance(x, CudaTensor) else x.to(CUDA), content)


class _Generator(torch.Generator):
    """A generator of CUDA, which draws on the CPU."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator.asked = torch.device(device)
        return generator

    device = property(lambda self: self.asked)
