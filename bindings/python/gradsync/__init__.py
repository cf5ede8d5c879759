# SPDX-License-Identifier: Apache-2.0
"""Keep gradients in step between the ranks of a training job.

    import gradsync, numpy

    with gradsync.Context() as ctx, ctx.comm_from_env() as comm:
        gradients = ctx.alloc_array(1_000_000, "f32")
        gradients[:] = comm.rank
        comm.all_reduce(gradients, op="avg")

A ctypes binding of libgradsync; importing it loads the shared library, which
GRADSYNC_LIBRARY names if it is in no usual place.
"""
from ._abi import Algo, Coll, DType, ErrorCode, LogLevel, MemKind, Op, P2p, Progress
from ._lib import lib as _c
from ._lib import library_path
from .comm import Comm
from .context import Context
from .errors import (
    AuthError,
    BrokenError,
    DeviceError,
    GradsyncError,
    InternalError,
    InvalidError,
    MismatchError,
    NoMemoryError,
    PeerLostError,
    SystemCallError,
    TimedOutError,
    UnsupportedError,
)
from .info import CommInfo, Counters, MemInfo, PeerInfo, RailInfo, Report, SystemInfo, TransportInfo
from .memory import Memory
from .request import Request, wait_all

#: The version of this package.
__version__ = "0.1.0"


def library_version() -> str:
    """The version of the shared library in use."""
    version: bytes = _c.gradsync_version()
    return version.decode()


__all__ = [
    "Algo",
    "AuthError",
    "BrokenError",
    "Coll",
    "Comm",
    "CommInfo",
    "Context",
    "Counters",
    "DType",
    "DeviceError",
    "ErrorCode",
    "GradsyncError",
    "InternalError",
    "InvalidError",
    "LogLevel",
    "MemInfo",
    "MemKind",
    "Memory",
    "MismatchError",
    "NoMemoryError",
    "Op",
    "P2p",
    "PeerInfo",
    "PeerLostError",
    "Progress",
    "RailInfo",
    "Report",
    "Request",
    "SystemCallError",
    "SystemInfo",
    "TimedOutError",
    "TransportInfo",
    "UnsupportedError",
    "library_path",
    "library_version",
    "wait_all",
]
