# SPDX-License-Identifier: Apache-2.0
"""Looks at the caller's memory without copying it.

Accepted are library memory, whatever has the buffer protocol (bytearray,
array.array, memoryview, mmap), numpy arrays, torch tensors, DLPack producers, and
objects with ``__array_interface__`` or ``__cuda_array_interface__``. Neither numpy
nor torch is imported.
"""
from __future__ import annotations

import ctypes as c
import re
import sys
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from ._abi import DType
from ._convert import DTypeLike, find_dtype, to_dtype
from .errors import InvalidError, UnsupportedError


class Buffer:
    """Where some memory is, and what keeps it there."""

    __slots__ = ("address", "nbytes", "dtype", "raw_bytes", "readonly", "device", "owner", "__weakref__")

    def __init__(
        self,
        address: int,
        nbytes: int,
        dtype: Optional[DType],
        raw_bytes: int,
        readonly: bool,
        owner: Any,
        device: str = "cpu",
    ) -> None:
        self.address = address
        self.nbytes = nbytes
        self.dtype = dtype  # None: the elements are of a type that the library has not
        self.raw_bytes = raw_bytes  # bytes (1), 16-bit integers (2) and opaque types may be given a type; else 0
        self.readonly = readonly
        self.owner = owner  # holds the memory, and for the buffer protocol the export
        self.device = device


    @property
    def count(self) -> int:
        """Elements."""
        return self.nbytes // self.dtype.nbytes if self.dtype is not None else 0


def look(obj: Any, dtype: Optional[DTypeLike] = None, *, typed: bool = True) -> Buffer:
    """Describes obj's memory; dtype gives raw memory its type. typed=False: any
    element type will do.

    Raises InvalidError (not memory, not contiguous, an element type that does not
    fit) or UnsupportedError (memory of a device).
    """
    found = _find(obj)
    if found is None:
        raise InvalidError(
            "%s is no memory that gradsync can use: pass a numpy array, a torch tensor, a DLPack or CUDA array "
            "object, or something with the buffer protocol" % type(obj).__name__
        )
    if found.device != "cpu":
        raise UnsupportedError(
            "the memory at 0x%x is on %s, and this build of libgradsync has no CUDA module; "
            "copy it to host memory first" % (found.address, found.device)
        )
    if dtype is not None:
        _retype(found, to_dtype(dtype))
    elif found.dtype is None and typed:
        raise InvalidError("the element type of this %s is unknown to gradsync; pass dtype=" % type(obj).__name__)
    return found


def _retype(found: Buffer, wanted: DType) -> None:
    """Raw memory takes any type; typed memory only its own: nothing is converted."""
    if found.dtype == wanted:
        return
    if not found.raw_bytes or (found.raw_bytes > 1 and found.raw_bytes != wanted.nbytes):
        has = "unknown elements" if found.dtype is None else found.dtype.short
        raise InvalidError(
            "the buffer holds %s, and dtype=%r does not convert it; convert the data, or view it as uint%d first"
            % (has, wanted.short, wanted.nbytes * 8)
        )
    if found.nbytes % wanted.nbytes:
        raise InvalidError(
            "the buffer has %d bytes, which is no whole number of %s elements" % (found.nbytes, wanted.short)
        )
    found.dtype = wanted


def _raw_integer(itemsize: int) -> int:
    """Wider integers given a floating type are more likely a mistake than a wish."""
    return itemsize if itemsize <= 2 else 0


def _find(obj: Any) -> Optional[Buffer]:
    own = getattr(type(obj), "_buffer", None)
    if own is not None:
        buffer: Buffer = obj._buffer()
        return buffer
    if type(obj).__module__.partition(".")[0] == "torch" and hasattr(obj, "data_ptr"):
        return _from_torch(obj)
    interface = getattr(obj, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(obj, interface, "a CUDA device")
    refused: Optional[Exception] = None
    try:
        export = _Export(obj)
    except TypeError:
        pass  # no buffer protocol
    except (BufferError, ValueError) as error:
        refused = error  # or no way to tell this element type: numpy with ml_dtypes
    else:
        return _from_export(obj, export)
    interface = getattr(obj, "__array_interface__", None)
    if isinstance(interface, dict):
        return _from_interface(obj, interface, "cpu")
    if hasattr(obj, "__dlpack__"):
        return _from_dlpack(obj)
    if refused is not None:
        raise InvalidError("%s gives no plain buffer: %s" % (type(obj).__name__, refused)) from refused
    return None


# ---- The buffer protocol -----------------------------------------------------


class _PyBuffer(c.Structure):
    """Py_buffer of CPython; its layout is part of the stable ABI."""

    _fields_ = [
        ("buf", c.c_void_p),
        ("obj", c.c_void_p),
        ("len", c.c_ssize_t),
        ("itemsize", c.c_ssize_t),
        ("readonly", c.c_int),
        ("ndim", c.c_int),
        ("format", c.c_char_p),
        ("shape", c.POINTER(c.c_ssize_t)),
        ("strides", c.POINTER(c.c_ssize_t)),
        ("suboffsets", c.POINTER(c.c_ssize_t)),
        ("internal", c.c_void_p),
    ]


_PyBUF_FORMAT = 4
_PyBUF_STRIDES = 0x18  # with the shape
_get_buffer = c.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [c.py_object, c.POINTER(_PyBuffer), c.c_int]
_get_buffer.restype = c.c_int  # an error raises, as pythonapi does
_release_buffer = c.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [c.POINTER(_PyBuffer)]
_release_buffer.restype = None
_is_contiguous = c.pythonapi.PyBuffer_IsContiguous
_is_contiguous.argtypes = [c.POINTER(_PyBuffer), c.c_char]
_is_contiguous.restype = c.c_int


class _Export:
    """Holds a buffer of an object: until it is released a bytearray cannot be
    resized, nor an mmap closed."""

    __slots__ = ("view", "_pointer", "_release")

    def __init__(self, obj: Any) -> None:
        self._release: Optional[Callable[[Any], None]] = None
        self.view = _PyBuffer()
        self._pointer = c.byref(self.view)
        _get_buffer(obj, self._pointer, _PyBUF_FORMAT | _PyBUF_STRIDES)
        self._release = _release_buffer

    def __del__(self) -> None:
        if self._release is not None:
            self._release(self._pointer)


_LONG = c.sizeof(c.c_long)
# struct-module letters -> (element type, bytes of raw memory)
_FORMATS: Dict[str, Tuple[Optional[DType], int]] = {
    "f": (DType.F32, 0),
    "d": (DType.F64, 0),
    "e": (DType.F16, 0),
    "b": (DType.I8, 1),
    "B": (DType.U8, 1),
    "c": (DType.U8, 1),
    "i": (DType.I32, 0),
    "I": (DType.U32, 0),
    "l": (DType.I64 if _LONG == 8 else DType.I32, 0),
    "L": (DType.U64 if _LONG == 8 else DType.U32, 0),
    "q": (DType.I64, 0),
    "Q": (DType.U64, 0),
    "n": (DType.I64 if _LONG == 8 else DType.I32, 0),
    "N": (DType.U64 if _LONG == 8 else DType.U32, 0),
    "h": (None, 2),
    "H": (None, 2),
}
_NATIVE = "<" if sys.byteorder == "little" else ">"
_STANDARD_LONG: Dict[str, Tuple[Optional[DType], int]] = {"l": (DType.I32, 0), "L": (DType.U32, 0)}


def _format_type(format: str, itemsize: int) -> Tuple[Optional[DType], int]:
    code = format[-1:] or "B"
    prefix = format[:-1]
    if prefix in ("", "@", "^"):
        return _FORMATS.get(code, (None, 0))
    if prefix in ("=", _NATIVE):
        return _STANDARD_LONG.get(code) or _FORMATS.get(code, (None, 0))
    if itemsize == 1 and prefix in ("<", ">", "!"):
        return _FORMATS.get(code, (None, 0))
    if prefix in ("<", ">", "!"):
        raise InvalidError("the buffer's elements are in the other byte order (%r); swap them first" % format)
    return None, 0


def _from_export(obj: Any, export: _Export) -> Buffer:
    view = export.view
    if view.len and not _is_contiguous(c.byref(view), b"C"):
        raise _not_contiguous(obj)
    dtype, raw = _format_type((view.format or b"B").decode("latin-1"), view.itemsize)
    return Buffer(view.buf or 0, view.len, dtype, raw, bool(view.readonly), export)


def _not_contiguous(obj: Any) -> InvalidError:
    return InvalidError(
        "this %s is not contiguous in C order; pass a contiguous one (numpy.ascontiguousarray, tensor.contiguous)"
        % type(obj).__name__
    )


# ---- numpy and CUDA array interfaces -----------------------------------------


def _from_interface(obj: Any, interface: Dict[str, Any], device: str) -> Buffer:
    data = interface.get("data")
    if not isinstance(data, tuple):
        raise InvalidError("the array interface of this %s has no address" % type(obj).__name__)
    shape = interface["shape"]
    typestr = str(interface["typestr"])
    order, kind = typestr[0], typestr[1]
    itemsize = int(re.match(r"\d*", typestr[2:]).group() or 0)  # type: ignore[union-attr]
    nbytes = itemsize
    for extent in shape:
        nbytes *= extent
    strides = interface.get("strides")
    if strides is not None and nbytes and not _contiguous(shape, strides, itemsize):
        raise _not_contiguous(obj)
    if order not in ("|", _NATIVE) and itemsize > 1:
        raise InvalidError("the array's elements are in the other byte order (%r); swap them first" % typestr)
    dtype, raw = None, 0
    if kind in "fiu":
        dtype = find_dtype({"f": "float", "i": "int", "u": "uint"}[kind] + str(itemsize * 8))
        raw = _raw_integer(itemsize) if kind != "f" else 0
    elif kind == "V":
        # ml_dtypes: an opaque type to the interface, but the dtype has its name
        dtype = find_dtype(getattr(getattr(obj, "dtype", None), "name", ""))
        raw = 0 if dtype is not None else itemsize
    return Buffer(data[0] or 0, nbytes, dtype, raw, bool(data[1]), obj, device)


def _contiguous(shape: Sequence[int], strides: Sequence[int], step: int) -> bool:
    for extent, stride in zip(reversed(shape), reversed(strides)):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


# ---- torch -------------------------------------------------------------------


def _from_torch(obj: Any) -> Buffer:
    """Straight from data_ptr(): DLPack refuses tensors that require a gradient."""
    if not obj.is_contiguous():
        raise _not_contiguous(obj)
    if obj.is_neg() or obj.is_conj():
        raise InvalidError("this tensor is a lazy negation or conjugate; call resolve_neg() or resolve_conj() first")
    itemsize = int(obj.element_size())
    name = str(obj.dtype)
    dtype = find_dtype(name)
    raw = _raw_integer(itemsize) if name.startswith(("torch.int", "torch.uint")) else 0
    device = str(obj.device)
    return Buffer(int(obj.data_ptr()), int(obj.numel()) * itemsize, dtype, raw, False, obj, device)


# ---- DLPack ------------------------------------------------------------------


class _DLDevice(c.Structure):
    _fields_ = [("device_type", c.c_int32), ("device_id", c.c_int32)]


class _DLDataType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class _DLTensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("device", _DLDevice),
        ("ndim", c.c_int32),
        ("dtype", _DLDataType),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


_capsule_pointer = c.pythonapi.PyCapsule_GetPointer
_capsule_pointer.argtypes = [c.py_object, c.c_char_p]
_capsule_pointer.restype = c.c_void_p

_DL_HOST = (1, 3, 11)  # CPU, and host memory pinned by CUDA or ROCm
_DL_DEVICES = {2: "cuda", 8: "metal", 10: "rocm", 13: "cuda (managed)", 14: "oneapi"}
_DL_TYPES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}


def _from_dlpack(obj: Any) -> Buffer:
    try:
        # -1: the producer need not order anything with a stream of ours
        kind = int(obj.__dlpack_device__()[0]) if hasattr(obj, "__dlpack_device__") else 1
        capsule = obj.__dlpack__() if kind in _DL_HOST else obj.__dlpack__(stream=-1)
    except BufferError as error:
        raise InvalidError("%s gives no DLPack tensor: %s" % (type(obj).__name__, error)) from error
    # The capsule is not consumed: while we hold it the tensor lives, and dropping
    # it runs the producer's deleter.
    address = _capsule_pointer(capsule, b"dltensor")
    tensor = _DLTensor.from_address(address)
    shape = tensor.shape[: tensor.ndim]
    if tensor.dtype.lanes != 1 or tensor.dtype.bits % 8:
        raise InvalidError("DLPack tensors of vectors or of parts of bytes cannot be reduced; use a plain type")
    itemsize = tensor.dtype.bits // 8
    count = 1
    for extent in shape:
        count *= extent
    if tensor.strides and count and not _contiguous(shape, tensor.strides[: tensor.ndim], 1):
        raise _not_contiguous(obj)
    name = _DL_TYPES.get(tensor.dtype.code, "?")
    dtype = find_dtype(name + str(tensor.dtype.bits))
    kind = tensor.device.device_type
    device = "cpu" if kind in _DL_HOST else "%s:%d" % (_DL_DEVICES.get(kind, "device type %d" % kind), tensor.device.device_id)
    raw = _raw_integer(itemsize) if name in ("int", "uint") else 0
    return Buffer((tensor.data or 0) + tensor.byte_offset, count * itemsize, dtype, raw, False, (obj, capsule), device)
