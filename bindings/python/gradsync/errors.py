# SPDX-License-Identifier: Apache-2.0
"""One exception class for each error code; the fields of the C struct are attributes."""
from __future__ import annotations

import builtins
import ctypes
from typing import Any, Callable, Dict, Optional, Tuple, Type

from ._abi import ErrorCode, ErrorInfo
from ._lib import lib, text

_FIELDS = ("rank", "peer", "rail", "step", "errno", "wc_status", "seq")


class GradsyncError(Exception):
    """Any failure of the library.

    Attributes that do not apply are -1 (``rank``, ``peer``, ``rail``, ``step``) or 0.
    """

    code: ErrorCode = ErrorCode.INTERNAL
    #: One sentence: what happened and what to do.
    message: str
    #: The rank that reports.
    rank: int
    #: The rank that is the cause: lost, late, or of another opinion.
    peer: int
    #: The rail, where one was involved.
    rail: int
    #: The step of the plan, where one was running.
    step: int
    #: errno, where a system call failed.
    errno: Any
    #: Verbs work-completion status, where one failed.
    wc_status: int
    #: The collective's number in its communicator, from 1.
    seq: int

    def __init__(
        self,
        message: str = "",
        *,
        rank: int = -1,
        peer: int = -1,
        rail: int = -1,
        step: int = -1,
        errno: int = 0,
        wc_status: int = 0,
        seq: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.rank = rank
        self.peer = peer
        self.rail = rail
        self.step = step
        self.errno = errno
        self.wc_status = wc_status
        self.seq = seq

    def __str__(self) -> str:
        return "%s: %s" % (self.code.name, self.message)

    # Exceptions travel between processes (multiprocessing, concurrent.futures).
    def __reduce__(self) -> Tuple[Callable[..., Any], Tuple[Any, ...]]:
        return _rebuild, (type(self), self.message, {name: getattr(self, name) for name in _FIELDS})


def _rebuild(kind: Type[GradsyncError], message: str, fields: Dict[str, int]) -> GradsyncError:
    return kind(message, **fields)


class InvalidError(GradsyncError, ValueError):
    """An argument is wrong; nothing was done."""

    code = ErrorCode.INVALID


class NoMemoryError(GradsyncError, MemoryError):
    """Memory, or room to map it, ran out."""

    code = ErrorCode.NOMEM


class UnsupportedError(GradsyncError, NotImplementedError):
    """Valid, but not with this memory, transport or build."""

    code = ErrorCode.UNSUPPORTED


class TimedOutError(GradsyncError, builtins.TimeoutError):
    """The deadline passed; ``peer`` is the rank waited for."""

    code = ErrorCode.TIMEOUT


class PeerLostError(GradsyncError, ConnectionError):
    """A rank died, left or aborted; ``peer`` names it."""

    code = ErrorCode.PEER_LOST


class MismatchError(GradsyncError):
    """Ranks called different things; the message says who called what."""

    code = ErrorCode.MISMATCH


class AuthError(GradsyncError, PermissionError):
    """A peer could not prove the job's key."""

    code = ErrorCode.AUTH


class SystemCallError(GradsyncError, OSError):
    """An operating-system call failed; ``errno`` tells which way."""

    code = ErrorCode.SYSTEM


class DeviceError(GradsyncError):
    """A NIC or GPU failed."""

    code = ErrorCode.DEVICE


class BrokenError(GradsyncError):
    """This communicator failed earlier; close it."""

    code = ErrorCode.BROKEN


class InternalError(GradsyncError):
    """A bug in libgradsync; please report it with the message."""

    code = ErrorCode.INTERNAL


#: The class of each error code.
BY_CODE: Dict[int, Type[GradsyncError]] = {
    int(kind.code): kind
    for kind in (
        InvalidError,
        NoMemoryError,
        UnsupportedError,
        TimedOutError,
        PeerLostError,
        MismatchError,
        AuthError,
        SystemCallError,
        DeviceError,
        BrokenError,
        InternalError,
    )
}


def from_code(code: int) -> GradsyncError:
    """The exception for a negative result, with this thread's last failure in it."""
    info = ErrorInfo()
    message: Optional[str] = None
    if lib.gradsync_last_error(ctypes.byref(info)) == code:
        message = text(info.message)
    kind = BY_CODE.get(code, InternalError)
    if message is None:
        return kind(text(lib.gradsync_strerror(code)))
    return kind(
        message,
        rank=info.rank,
        peer=info.peer,
        rail=info.rail,
        step=info.step,
        errno=info.sys_errno,
        wc_status=info.wc_status,
        seq=info.seq,
    )


def check(code: int) -> int:
    """Raises if a C result is an error, else returns it."""
    if code < 0:
        raise from_code(code)
    return code
