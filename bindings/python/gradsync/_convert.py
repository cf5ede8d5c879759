# SPDX-License-Identifier: Apache-2.0
"""What callers may write for an enum, an element type or a time, as C values."""
from __future__ import annotations

from enum import IntEnum
from typing import Any, Dict, Optional, Type, TypeVar, Union

from ._abi import Algo, Coll, DType, Op
from .errors import InvalidError

DTypeLike = Union[DType, str, Any]  # also numpy, ml_dtypes and torch types
OpLike = Union[Op, str, int]
AlgoLike = Union[Algo, str, int]
CollLike = Union[Coll, str, int]

_DTYPE_NAMES: Dict[str, DType] = {
    **{dtype.short: dtype for dtype in DType},
    "float32": DType.F32,
    "float": DType.F32,
    "float64": DType.F64,
    "double": DType.F64,
    "float16": DType.F16,
    "half": DType.F16,
    "bfloat16": DType.BF16,
    "int8": DType.I8,
    "uint8": DType.U8,
    "int32": DType.I32,
    "uint32": DType.U32,
    "int64": DType.I64,
    "uint64": DType.U64,
}


def find_dtype(value: DTypeLike) -> Optional[DType]:
    """The element type that value means, None if the library has no such type."""
    if isinstance(value, DType):
        return value
    if isinstance(value, str):
        name = value
    else:
        # numpy.dtype has .name, a scalar class like numpy.float32 has __name__,
        # and str(torch.float32) is "torch.float32"
        name = getattr(value, "name", None) or getattr(value, "__name__", None) or str(value)
    return _DTYPE_NAMES.get(str(name).rpartition(".")[2].lower())


def to_dtype(value: DTypeLike) -> DType:
    """As find_dtype(); raises InvalidError if there is none."""
    dtype = find_dtype(value)
    if dtype is None:
        raise InvalidError("dtype %r is unknown; use one of %s" % (value, ", ".join(d.short for d in DType)))
    return dtype


_Enum = TypeVar("_Enum", bound=IntEnum)


def to_enum(kind: Type[_Enum], value: Union[_Enum, str, int], what: str) -> _Enum:
    """A member of kind from a member, its number or its name."""
    try:
        if isinstance(value, str):
            return kind[value.upper()]
        return kind(value)
    except (KeyError, ValueError):
        names = ", ".join(member.name.lower() for member in kind)
        raise InvalidError("%s %r is unknown; use one of %s" % (what, value, names)) from None


def timeout_ms(seconds: Optional[float]) -> int:
    """Seconds as the library's milliseconds; None is the default, 0 in C."""
    if seconds is None:
        return 0
    if not seconds > 0:
        raise InvalidError("timeout must be more than 0 seconds; None means the default")
    return max(1, int(min(seconds, 1e12) * 1000))
