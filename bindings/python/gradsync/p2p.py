# SPDX-License-Identifier: Apache-2.0
"""Point to point: messages, one-sided access and signals between two ranks."""
from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

from . import _abi
from ._lib import lib
from .buffers import Buffer, look
from .errors import InvalidError, check
from .request import Request, RequestHandle

if TYPE_CHECKING:
    from .comm import CommHandle
    from .memory import Memory

_KEY_BYTES = ctypes.sizeof(_abi.Key)


class Call(NamedTuple):
    """An operation, checked and ready to be called or posted."""

    name: str
    arguments: Tuple[Any, ...]
    keep: Tuple[Any, ...]
    result: Any


class ReceiveRequest(Request):
    """A posted receive: wait() returns the length of the message in bytes."""

    __slots__ = ("_received",)

    def __init__(self, comm: "CommHandle", handle: RequestHandle, received: ctypes.c_uint64) -> None:
        super().__init__(comm, handle, None)
        self._received = received

    def wait(self) -> Any:
        super().wait()
        return self._received.value

    @property
    def result(self) -> Any:
        """The length of the message; it is there when the request is done."""
        return self._received.value


def _target(obj: Any) -> Buffer:
    target = look(obj, typed=False)
    if target.readonly:
        raise InvalidError("this %s is read-only, so nothing can be received into it" % type(obj).__name__)
    return target


def _key(key: bytes) -> Any:
    if len(key) != _KEY_BYTES:
        raise InvalidError("a key has %d bytes, not %d; make it with Comm.key()" % (_KEY_BYTES, len(key)))
    return ctypes.byref(_abi.Key.from_buffer_copy(key))


class PointToPoint:
    """What a Comm does between this rank and one peer.

    These calls and the collectives of a communicator do not wait for each other.
    Deadlines are the communicator's. Buffers are any memory that ``gradsync.buffers``
    knows, of any element type. The ``_post`` forms return a Request at once.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        _handle: CommHandle
        _size: int

        def _run(self, call: Any) -> Any: ...

        def _begin(self, call: Any) -> RequestHandle: ...

        def _post(self, call: Any) -> Request: ...

        def all_gather(self, send: Any, recv: Any = None) -> Any: ...

    # ---- messages ----

    def send(self, peer: int, buffer: Any, tag: int = 0) -> None:
        """Sends the buffer to a peer, which receives it with the same tag. A short
        message is on its way at return, a long one has been received."""
        self._run(_send(peer, buffer, tag))

    def send_post(self, peer: int, buffer: Any, tag: int = 0) -> Request:
        """send(), posted."""
        return self._post(_send(peer, buffer, tag))

    def recv(self, peer: int, buffer: Any, tag: int = 0) -> int:
        """Receives a message of that peer and tag, in their order; returns its bytes.
        A longer one than the buffer is a MismatchError, and the message is gone."""
        received: int = self._run(_recv(peer, buffer, tag)).value
        return received

    def recv_post(self, peer: int, buffer: Any, tag: int = 0) -> Request:
        """recv(), posted; its wait() returns the bytes."""
        call = _recv(peer, buffer, tag)
        return ReceiveRequest(self._handle, self._begin(call), call.result)

    # ---- one-sided access ----

    def key(self, memory: "Memory") -> bytes:
        """What other ranks need to put into this memory and get from it: plain bytes, for
        this communicator and as long as the memory is there."""
        raw = _abi.Key()
        held = memory._open()
        with self._handle.using():
            check(lib.gradsync_mem_key(self._handle.value, held.value, ctypes.byref(raw)))
        return bytes(raw)

    def keys(self, memory: "Memory") -> List[bytes]:
        """The keys of all ranks' memory, by rank; every rank calls it."""
        whole = bytearray(_KEY_BYTES * self._size)
        self.all_gather(bytearray(self.key(memory)), whole)
        return [bytes(whole[at : at + _KEY_BYTES]) for at in range(0, len(whole), _KEY_BYTES)]

    def put(self, peer: int, source: Any, key: bytes, offset: int = 0) -> None:
        """Copies source into the peer's memory, `offset` bytes behind its start. The
        peer is not told: see signal()."""
        self._run(_access("gradsync_put", peer, look(source, typed=False), key, offset))

    def put_post(self, peer: int, source: Any, key: bytes, offset: int = 0) -> Request:
        """put(), posted."""
        return self._post(_access("gradsync_put", peer, look(source, typed=False), key, offset))

    def get(self, peer: int, into: Any, key: bytes, offset: int = 0) -> Any:
        """Fills `into` from the peer's memory, and returns it."""
        return self._run(_access("gradsync_get", peer, _target(into), key, offset, into))

    def get_post(self, peer: int, into: Any, key: bytes, offset: int = 0) -> Request:
        """get(), posted."""
        return self._post(_access("gradsync_get", peer, _target(into), key, offset, into))

    # ---- signals ----

    def signal(self, peer: int, slot: int = 0) -> None:
        """Raises the peer's count of this rank's signals in a slot (0 to 63); it is seen
        there only after all that this rank has put before."""
        self._run(Call("gradsync_signal", (peer, slot), (), None))

    def signal_post(self, peer: int, slot: int = 0) -> Request:
        """signal(), posted."""
        return self._post(Call("gradsync_signal", (peer, slot), (), None))

    def wait_signal(self, peer: int, slot: int = 0, value: int = 1) -> None:
        """Waits until the peer has signalled at least `value` times in all."""
        self._run(Call("gradsync_wait_signal", (peer, slot, value), (), None))

    def signal_count(self, peer: int, slot: int = 0) -> int:
        """How many times the peer has signalled so far; never waits."""
        count = ctypes.c_uint64()
        self._run(Call("gradsync_signal_count", (peer, slot, ctypes.byref(count)), (), None))
        return count.value


def _send(peer: int, buffer: Any, tag: int) -> Call:
    source = look(buffer, typed=False)
    return Call("gradsync_send", (peer, source.address, source.nbytes, tag), (source,), None)


def _recv(peer: int, buffer: Any, tag: int) -> Call:
    target = _target(buffer)
    received = ctypes.c_uint64()
    arguments = (peer, target.address, target.nbytes, tag, ctypes.byref(received))
    return Call("gradsync_recv", arguments, (target, received), received)


def _access(name: str, peer: int, own: Buffer, key: bytes, offset: int, result: Optional[Any] = None) -> Call:
    if offset < 0:
        raise InvalidError("offset must be 0 or more")
    return Call(name, (peer, own.address, _key(key), offset, own.nbytes), (own,), result)
