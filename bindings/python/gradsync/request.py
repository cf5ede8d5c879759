# SPDX-License-Identifier: Apache-2.0
"""Posted operations."""
from __future__ import annotations

import asyncio
import ctypes
import os
from typing import TYPE_CHECKING, Any, Generator, Iterable, Optional, Tuple, Type

from . import _abi, _lib
from ._abi import Algo, Coll, ErrorCode, P2p
from ._lib import lib, text
from .errors import GradsyncError, InvalidError, check, from_code
from .info import Report

if TYPE_CHECKING:
    from types import TracebackType

    from .comm import CommHandle

_IN_PROGRESS = int(ErrorCode.IN_PROGRESS)


def to_report(raw: _abi.Report) -> Report:
    return Report(
        coll=P2p(raw.coll) if raw.coll >= P2p.PUT else Coll(raw.coll),
        algo=Algo(raw.algo),
        result=ErrorCode(raw.result),
        seq=raw.seq,
        nbytes=raw.bytes,
        predicted_us=raw.predicted_us,
        measured_us=raw.measured_us,
        wait_us=raw.wait_us,
        reason=text(raw.reason),
    )


class RequestHandle:
    """Owns the C request and the buffers that the library works in. The
    communicator holds it until the request is done, so dropping a Request early
    never frees memory under a running collective."""

    __slots__ = ("value", "keep", "error", "done", "abandoned", "era", "__weakref__")

    def __init__(self, value: int, keep: Tuple[Any, ...]) -> None:
        self.value: Optional[int] = value
        self.keep: Optional[Tuple[Any, ...]] = keep
        self.error: Optional[GradsyncError] = None
        self.done = False
        self.abandoned = False
        self.era = _lib.era

    def settle(self, code: int) -> None:
        """Takes the final result of the C request; once."""
        if not self.done:
            if code < 0:
                self.error = from_code(code)
            self.keep = None
            self.done = True

    def free(self) -> None:
        """Gives the C request back, once; it must be done."""
        value, self.value = self.value, None
        if value is not None:
            lib.gradsync_request_free(value)

    def __del__(self) -> None:
        # One in progress is in its communicator's set, and gets here only when the
        # garbage collector takes both: then the communicator frees it as it ends.
        self.abandoned = True
        if self.done and _lib is not None and _lib.era == self.era:
            self.free()


class Request:
    """An operation that goes on while the caller computes.

    wait(), ``await``, or test() until it is True; then the buffers are the
    caller's again. As a context manager it waits at the end of the block.
    """

    __slots__ = ("_comm", "_handle", "_result", "__weakref__")

    def __init__(self, comm: "CommHandle", handle: RequestHandle, result: Any) -> None:
        self._comm = comm
        self._handle: Optional[RequestHandle] = handle
        self._result = result

    def _open(self) -> RequestHandle:
        if self._handle is None:
            raise InvalidError("this Request is closed; ask it before close()")
        return self._handle

    def test(self) -> bool:
        """True when done, False while in progress; never blocks. Raises its error."""
        handle = self._open()
        if not handle.done:
            with self._comm.using(even_closed=True):
                code = lib.gradsync_test(handle.value)
            if code == _IN_PROGRESS:
                return False
            self._comm.finish(handle, code)
        if handle.error is not None:
            raise handle.error
        return True

    def wait(self) -> Any:
        """Waits until it is done, at most until the collective's deadline; returns
        the object that received the result. Raises its error."""
        handle = self._open()
        if not handle.done:
            with self._comm.using(even_closed=True):
                code = lib.gradsync_wait(handle.value)
            self._comm.finish(handle, code)
        if handle.error is not None:
            raise handle.error
        return self._result

    def fileno(self) -> int:
        """A descriptor that becomes readable when it is done, for select and poll.
        Do not read or close it. Needs a progress thread."""
        handle = self._open()
        with self._comm.using(even_closed=True):
            return check(lib.gradsync_request_fd(handle.value))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Any:
        if not self.test():
            loop = asyncio.get_running_loop()
            # a copy: event loops know one reader a descriptor, and several tasks may wait
            fd = os.dup(self.fileno())
            ready: "asyncio.Future[None]" = loop.create_future()
            loop.add_reader(fd, _set_ready, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
                os.close(fd)
        return self.wait()

    def report(self) -> Report:
        """What it did, once it is done."""
        raw = _abi.Report()
        check(lib.gradsync_request_report(self._open().value, ctypes.byref(raw)))
        return to_report(raw)

    @property
    def done(self) -> bool:
        """True once it ended, well or not; does not raise."""
        try:
            return self.test()
        except GradsyncError:
            return self._open().done

    @property
    def result(self) -> Any:
        """The object that receives the result; it is there when the request is done."""
        return self._result

    def close(self) -> None:
        """Forgets the request. One in progress goes on, and its buffers stay alive
        and in use until it ends. May be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.abandoned = True

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.abandoned = True

    def __enter__(self) -> "Request":
        return self

    def __exit__(
        self,
        kind: "Optional[Type[BaseException]]",
        error: Optional[BaseException],
        trace: "Optional[TracebackType]",
    ) -> None:
        try:
            if error is None and self._handle is not None:
                self.wait()
        finally:
            self.close()


def _set_ready(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def wait_all(requests: Iterable[Request]) -> None:
    """Waits for all of them; then raises the first error in their order, if any."""
    listed = list(requests)
    error: Optional[GradsyncError] = None
    for request in listed:
        try:
            request.wait()
        except GradsyncError as failure:
            error = error or failure
    if error is not None:
        raise error
