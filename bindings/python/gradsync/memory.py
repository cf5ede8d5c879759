# SPDX-License-Identifier: Apache-2.0
"""Memory that the library allocated, or was told about."""
from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple, Type, Union

from . import _abi, _lib
from ._abi import DType, MemKind
from ._convert import DTypeLike, to_dtype
from ._lib import lib, text
from .buffers import Buffer
from .errors import InvalidError, check
from .info import MemInfo

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from .context import ContextHandle

# numpy's name of each element type; numpy has no bf16
_NUMPY = ("float32", "float64", "float16", "uint16", "int8", "uint8", "int32", "uint32", "int64", "uint64")
# the struct-module letter of each; memoryview knows no 16-bit floats
_LETTERS = ("f", "d", "H", "H", "b", "B", "i", "I", "q", "Q")


class MemHandle:
    """Owns the C handle. Whoever looks at the memory holds a reference, so it is
    freed after the last view."""

    __slots__ = ("value", "context", "owner", "address", "nbytes", "era", "_end", "__weakref__")

    def __init__(self, value: int, context: "ContextHandle", owner: Optional[Buffer], nbytes: int) -> None:
        self.value = value
        self.context = context
        self.owner = owner  # what the user registered; None: allocated here
        self.address: int = owner.address if owner is not None else lib.gradsync_mem_addr(value)
        self.nbytes = nbytes
        self.era = _lib.era
        self._end = lib.gradsync_mem_deregister if owner is not None else lib.gradsync_mem_free
        context.retain()

    def __del__(self) -> None:
        if _lib is not None and _lib.era == self.era:
            self._end(self.value)
            self.context.release()


class _Bytes(ctypes.Array):  # type: ignore[type-arg]
    """The base of the exported arrays; they hold the handle as an attribute."""

    _type_ = ctypes.c_ubyte
    _length_ = 0
    handle: MemHandle


class Memory:
    """A range of memory. Made by Context.alloc() and Context.register().

    ``memory.view()``, ``memory.numpy()`` and, from Python 3.12 on,
    ``memoryview(memory)`` look at it without copying. Closing gives up this
    object's hold on it; the memory goes back when the last view is gone too.
    """

    __slots__ = ("_handle", "__weakref__")

    def __init__(self, handle: MemHandle) -> None:
        self._handle: Optional[MemHandle] = handle

    def _open(self) -> MemHandle:
        if self._handle is None:
            raise InvalidError("this Memory is closed; allocate or register again")
        return self._handle

    @property
    def address(self) -> int:
        """The start of the memory."""
        return self._open().address

    @property
    def nbytes(self) -> int:
        """Bytes that were asked for."""
        return self._open().nbytes

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._handle is None

    def __len__(self) -> int:
        return self.nbytes

    def info(self) -> MemInfo:
        """Kind, page size, NUMA node, and why it is not better."""
        raw = _abi.MemInfo()
        check(lib.gradsync_mem_query(self._open().value, ctypes.byref(raw)))
        return MemInfo(
            kind=MemKind(raw.kind),
            address=raw.addr or 0,
            nbytes=raw.bytes,
            page_bytes=raw.page_bytes,
            numa_node=raw.numa_node,
            shareable=bool(raw.shareable),
            reason=text(raw.reason),
        )

    def _bytes(self) -> _Bytes:
        handle = self._open()
        kind: Type[_Bytes] = type("MemoryBytes", (_Bytes,), {"_length_": handle.nbytes})
        array = kind.from_address(handle.address)
        array.handle = handle  # alive while the array, hence any view of it, is
        return array

    def view(self, dtype: DTypeLike = DType.U8) -> memoryview:
        """A writable memoryview of all whole elements (f16 and bf16 as 16-bit integers)."""
        kind = to_dtype(dtype)
        letter: Any = _LETTERS[kind]
        plain = memoryview(self._bytes()).cast("B")
        typed: memoryview = plain[: len(plain) // kind.nbytes * kind.nbytes].cast(letter)
        return typed

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._bytes()).cast("B")

    def numpy(self, dtype: DTypeLike = DType.U8, shape: Union[int, Sequence[int], None] = None) -> "np.ndarray[Any, Any]":
        """A writable numpy array over the start of the memory; needs numpy.

        bf16 comes as ml_dtypes.bfloat16 if dtype is that type, else as uint16:
        then pass dtype="bf16" to the collectives. shape None: all whole elements.
        """
        import numpy

        kind = to_dtype(dtype)
        element = numpy.dtype(_NUMPY[kind])
        if kind is DType.BF16 and not isinstance(dtype, (str, DType)):
            element = numpy.dtype(dtype)
        if shape is None:
            extents: Tuple[int, ...] = (self.nbytes // kind.nbytes,)
        else:
            extents = (shape,) if isinstance(shape, int) else tuple(int(extent) for extent in shape)
        count = 1
        for extent in extents:
            count *= extent
        if min(extents, default=0) < 0 or count * kind.nbytes > self.nbytes:
            raise InvalidError(
                "shape %r of %s needs %d bytes, and the memory has %d"
                % (extents, kind.short, count * kind.nbytes, self.nbytes)
            )
        whole: Any = self._bytes()  # the array's base, and through it what keeps the memory
        flat: Any = numpy.frombuffer(whole, dtype=numpy.uint8, count=count * kind.nbytes)
        array: "np.ndarray[Any, Any]" = flat.view(element).reshape(extents)
        return array

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> "np.ndarray[Any, Any]":
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError("the bytes of a Memory have no other type without a copy; use Memory.numpy(dtype)")
            return array.astype(dtype)
        return array.copy() if copy else array

    def _buffer(self) -> Buffer:
        handle = self._open()
        return Buffer(handle.address, handle.nbytes, DType.U8, 1, False, handle)

    def close(self) -> None:
        """Gives the memory back once no view of it is left. May be called twice."""
        self._handle = None

    def __enter__(self) -> "Memory":
        return self

    def __exit__(
        self,
        kind: "Optional[Type[BaseException]]",
        error: Optional[BaseException],
        trace: "Optional[TracebackType]",
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._handle is None:
            return "<gradsync.Memory closed>"
        return "<gradsync.Memory %d bytes at 0x%x>" % (self.nbytes, self.address)
