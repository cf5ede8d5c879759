# SPDX-License-Identifier: Apache-2.0
"""Communicators and their collectives."""
from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Set, Tuple, Type, Union

from . import _abi, _lib
from ._abi import Algo, Coll, CollFlags, DType, MemKind, Op
from ._convert import AlgoLike, CollLike, DTypeLike, OpLike, timeout_ms, to_dtype, to_enum
from ._lib import lib, text
from .buffers import Buffer, look
from .errors import InvalidError, check
from .info import CommInfo, Counters, PeerInfo, RailInfo, Report
from .p2p import Call, PointToPoint
from .request import Request, RequestHandle, to_report

if TYPE_CHECKING:
    from types import TracebackType

    from .context import ContextHandle


def comm_config(timeout: Optional[float], algo: AlgoLike) -> _abi.CommConfig:
    config = _abi.CommConfig()
    lib.gradsync_comm_config_init(ctypes.byref(config))
    config.timeout_ms = timeout_ms(timeout)
    config.algo = to_enum(Algo, algo, "algo")
    return config


class _Using:
    """Counts the calls in a communicator, which must not end below them."""

    __slots__ = ("comm", "even_closed")

    def __init__(self, comm: "CommHandle", even_closed: bool) -> None:
        self.comm = comm
        self.even_closed = even_closed

    def __enter__(self) -> None:
        comm = self.comm
        with comm.lock:
            if comm.value is None and not self.even_closed:
                raise InvalidError("this Comm is closed; make another one")
            if comm.era != _lib.era:
                raise InvalidError("this Comm is the parent process's; a forked child must make its own")
            comm.calls += 1

    def __exit__(self, *error: Any) -> None:
        with self.comm.lock:
            self.comm.calls -= 1


class CommHandle:
    """Owns the C handle and the requests that are in progress."""

    __slots__ = ("value", "context", "callback", "lock", "calls", "pending", "era", "__weakref__")

    def __init__(self, value: int, context: "ContextHandle", callback: Any) -> None:
        self.value: Optional[int] = value
        self.era = _lib.era
        self.context = context
        self.callback = callback
        self.lock = threading.Lock()
        self.calls = 0
        self.pending: Set[RequestHandle] = set()
        context.retain()
        _lib.live.add(self)

    def using(self, even_closed: bool = False) -> _Using:
        """A block during which the communicator cannot be closed. Requests outlive
        it: they ask with even_closed."""
        return _Using(self, even_closed)

    def finish(self, handle: RequestHandle, code: int) -> None:
        """A request is done: its buffers are the caller's again."""
        with self.lock:
            handle.settle(code)
            self.pending.discard(handle)

    def reap(self) -> None:
        """Ends requests that nobody holds any more and that are done by now."""
        with self.lock:
            orphans = [handle for handle in self.pending if handle.abandoned]
        for handle in orphans:
            code = lib.gradsync_test(handle.value)
            if code <= 0:
                self.finish(handle, code)

    def close(self) -> None:
        with self.lock:
            if self.value is None:
                return
            if self.calls:
                raise InvalidError(
                    "another thread is in a call on this communicator; abort() it and join that thread first"
                )
            value, self.value = self.value, None
        if self.era != _lib.era:
            return  # in a forked child: only the parent may end it
        lib.gradsync_comm_destroy(value)
        for handle in list(self.pending):  # ended as BROKEN, or finished just before
            self.finish(handle, lib.gradsync_test(handle.value))
            if handle.abandoned:
                handle.free()
        self.context.release()

    def close_at_exit(self) -> None:
        try:
            self.close()
        except InvalidError:
            pass  # a daemon thread is still in it: the process ends below it

    def __del__(self) -> None:
        if _lib is not None and _lib.era == self.era and self.value is not None:
            self.close()


class Comm(PointToPoint):
    """One rank's handle of a group of ranks. Made by Context.comm() and
    Context.comm_from_env().

    Collectives take any memory that ``gradsync.buffers`` knows, and never copy it
    on the way in. With one buffer they work in place, with two out of place; they
    return the object that received the result. Every rank calls the same ones in
    the same order. Common arguments:

    dtype: element type of raw memory, such as uint16 arrays that hold "bf16".
    op: "sum", "avg", "prod", "min", "max", "premul_sum".
    ordered: the same bits whatever the algorithm, chunking or placement of ranks.
    prescale: this rank's contribution is multiplied by it first (sum, avg, premul_sum).
    timeout: deadline in seconds; None: the communicator's.
    algo: "auto", "ring", "tree", ...; the same on every rank.

    Messages and one-sided operations between two ranks are in PointToPoint.

    The ``_post`` forms return a Request at once. Calls release the interpreter
    lock while they wait.
    """

    __slots__ = ("_handle", "_rank", "_size", "__weakref__")

    def __init__(self, handle: CommHandle) -> None:
        self._handle = handle
        self._rank: int = lib.gradsync_comm_rank(handle.value)
        self._size: int = lib.gradsync_comm_size(handle.value)

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._size

    # ---- collectives ----

    def all_reduce(
        self,
        send: Any,
        recv: Any = None,
        op: OpLike = Op.SUM,
        *,
        dtype: Optional[DTypeLike] = None,
        ordered: bool = False,
        prescale: Optional[float] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Any:
        """recv (or send itself) becomes the reduction of all ranks' send."""
        return self._run(self._all_reduce(send, recv, op, dtype, ordered, prescale, timeout, algo))

    def all_reduce_post(
        self,
        send: Any,
        recv: Any = None,
        op: OpLike = Op.SUM,
        *,
        dtype: Optional[DTypeLike] = None,
        ordered: bool = False,
        prescale: Optional[float] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Request:
        """all_reduce(), posted."""
        return self._post(self._all_reduce(send, recv, op, dtype, ordered, prescale, timeout, algo))

    def reduce_scatter(
        self,
        send: Any,
        recv: Any = None,
        op: OpLike = Op.SUM,
        *,
        dtype: Optional[DTypeLike] = None,
        ordered: bool = False,
        prescale: Optional[float] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Any:
        """recv becomes this rank's part of the reduction: send has size times as many
        elements. In place: the part is at its place in send, and the rest of send
        is undefined."""
        return self._run(self._reduce_scatter(send, recv, op, dtype, ordered, prescale, timeout, algo))

    def reduce_scatter_post(
        self,
        send: Any,
        recv: Any = None,
        op: OpLike = Op.SUM,
        *,
        dtype: Optional[DTypeLike] = None,
        ordered: bool = False,
        prescale: Optional[float] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Request:
        """reduce_scatter(), posted."""
        return self._post(self._reduce_scatter(send, recv, op, dtype, ordered, prescale, timeout, algo))

    def all_gather(
        self,
        send: Any,
        recv: Any = None,
        *,
        dtype: Optional[DTypeLike] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Any:
        """recv becomes all ranks' send, by rank. In place, with one buffer: that is
        the receiving one, and this rank's part of it is what it sends."""
        return self._run(self._all_gather(send, recv, dtype, timeout, algo))

    def all_gather_post(
        self,
        send: Any,
        recv: Any = None,
        *,
        dtype: Optional[DTypeLike] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Request:
        """all_gather(), posted."""
        return self._post(self._all_gather(send, recv, dtype, timeout, algo))

    def broadcast(
        self,
        send: Any,
        recv: Any = None,
        *,
        root: int = 0,
        dtype: Optional[DTypeLike] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Any:
        """Every rank's recv becomes the root's send. With one buffer the root sends
        it and the others receive into it; other ranks than the root may pass None
        as send."""
        return self._run(self._broadcast(send, recv, root, dtype, timeout, algo))

    def broadcast_post(
        self,
        send: Any,
        recv: Any = None,
        *,
        root: int = 0,
        dtype: Optional[DTypeLike] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Request:
        """broadcast(), posted."""
        return self._post(self._broadcast(send, recv, root, dtype, timeout, algo))

    def reduce(
        self,
        send: Any,
        recv: Any = None,
        op: OpLike = Op.SUM,
        *,
        root: int = 0,
        dtype: Optional[DTypeLike] = None,
        ordered: bool = False,
        prescale: Optional[float] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Any:
        """recv of the root (or its send) becomes the reduction of all ranks' send.
        Returns None on the other ranks, whose recv is not used."""
        return self._run(self._reduce(send, recv, op, root, dtype, ordered, prescale, timeout, algo))

    def reduce_post(
        self,
        send: Any,
        recv: Any = None,
        op: OpLike = Op.SUM,
        *,
        root: int = 0,
        dtype: Optional[DTypeLike] = None,
        ordered: bool = False,
        prescale: Optional[float] = None,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> Request:
        """reduce(), posted."""
        return self._post(self._reduce(send, recv, op, root, dtype, ordered, prescale, timeout, algo))

    def barrier(self, *, timeout: Optional[float] = None) -> None:
        """Returns on each rank only after every rank has called it."""
        self._run(Call("gradsync_barrier", (_options(timeout=timeout),), (), None))

    def barrier_post(self, *, timeout: Optional[float] = None) -> Request:
        """barrier(), posted."""
        return self._post(Call("gradsync_barrier", (_options(timeout=timeout),), (), None))

    # ---- what both forms share ----

    def _all_reduce(
        self,
        send: Any,
        recv: Any,
        op: OpLike,
        dtype: Optional[DTypeLike],
        ordered: bool,
        prescale: Optional[float],
        timeout: Optional[float],
        algo: AlgoLike,
    ) -> Call:
        reduction = to_enum(Op, op, "op")
        opts = _options(reduction, ordered, prescale, timeout, algo)
        out = send if recv is None else recv
        source = look(send, dtype)
        target = source if out is send else look(out, dtype)
        _writable(target, out, recv is None)
        _same(source, target, 1, 1)
        arguments = (source.address, target.address, source.count, source.dtype, reduction, opts)
        return Call("gradsync_all_reduce", arguments, (source, target), out)

    def _reduce_scatter(
        self,
        send: Any,
        recv: Any,
        op: OpLike,
        dtype: Optional[DTypeLike],
        ordered: bool,
        prescale: Optional[float],
        timeout: Optional[float],
        algo: AlgoLike,
    ) -> Call:
        reduction = to_enum(Op, op, "op")
        opts = _options(reduction, ordered, prescale, timeout, algo)
        source = look(send, dtype)
        if recv is None or recv is send:
            _writable(source, send, recv is None)
            count, offset = self._part(source)
            target, address, out = source, source.address + offset, send
        else:
            target = look(recv, dtype)
            _writable(target, recv, False)
            _same(source, target, 1, self._size)
            count, address, out = target.count, target.address, recv
        arguments = (source.address, address, count, source.dtype, reduction, opts)
        return Call("gradsync_reduce_scatter", arguments, (source, target), out)

    def _all_gather(
        self, send: Any, recv: Any, dtype: Optional[DTypeLike], timeout: Optional[float], algo: AlgoLike
    ) -> Call:
        opts = _options(timeout=timeout, algo=algo)
        source = look(send, dtype)
        if recv is None or recv is send:
            _writable(source, send, recv is None)
            count, offset = self._part(source)
            target, address, out = source, source.address + offset, send
        else:
            target = look(recv, dtype)
            _writable(target, recv, False)
            _same(source, target, self._size, 1)
            count, address, out = source.count, source.address, recv
        arguments = (address, target.address, count, source.dtype, opts)
        return Call("gradsync_all_gather", arguments, (source, target), out)

    def _broadcast(
        self, send: Any, recv: Any, root: int, dtype: Optional[DTypeLike], timeout: Optional[float], algo: AlgoLike
    ) -> Call:
        opts = _options(timeout=timeout, algo=algo)
        out = send if recv is None else recv
        target = look(out, dtype)
        _writable(target, out, recv is None)
        source = target
        address = None
        if self._rank == root:
            if out is not send:
                source = look(send, dtype)
                _same(source, target, 1, 1)
            address = source.address
        arguments = (address, target.address, target.count, target.dtype, root, opts)
        return Call("gradsync_broadcast", arguments, (source, target), out)

    def _reduce(
        self,
        send: Any,
        recv: Any,
        op: OpLike,
        root: int,
        dtype: Optional[DTypeLike],
        ordered: bool,
        prescale: Optional[float],
        timeout: Optional[float],
        algo: AlgoLike,
    ) -> Call:
        reduction = to_enum(Op, op, "op")
        opts = _options(reduction, ordered, prescale, timeout, algo)
        source = look(send, dtype)
        target, address, out = source, None, None
        if self._rank == root:
            out = send if recv is None else recv
            target = source if out is send else look(out, dtype)
            _writable(target, out, recv is None)
            _same(source, target, 1, 1)
            address = target.address
        arguments = (source.address, address, source.count, source.dtype, reduction, root, opts)
        return Call("gradsync_reduce", arguments, (source, target), out)

    def _part(self, whole: Buffer) -> Tuple[int, int]:
        """Elements of one rank's part of a buffer, and bytes before this rank's."""
        count = whole.count
        if count % self._size:
            raise InvalidError(
                "a buffer of %d elements has no equal parts for %d ranks; pad it" % (count, self._size)
            )
        part = count // self._size
        return part, self._rank * (whole.nbytes // self._size)

    def _run(self, call: Call) -> Any:
        handle = self._handle
        with handle.using():
            code = getattr(lib, call.name)(handle.value, *call.arguments)
        if code:
            check(code)
        return call.result

    def _begin(self, call: Call) -> RequestHandle:
        handle = self._handle
        out = ctypes.c_void_p()
        with handle.using():
            handle.reap()
            check(getattr(lib, call.name + "_post")(handle.value, *call.arguments, ctypes.byref(out)))
            assert out.value
            request = RequestHandle(out.value, call.keep)
            with handle.lock:
                handle.pending.add(request)
        return request

    def _post(self, call: Call) -> Request:
        return Request(self._handle, self._begin(call), call.result)

    # ---- groups ----

    def split(
        self,
        color: Optional[int],
        key: int = 0,
        *,
        timeout: Optional[float] = None,
        algo: AlgoLike = Algo.AUTO,
    ) -> "Optional[Comm]":
        """Ranks of equal color form a communicator, ordered by key, then by rank.
        color None: this rank is in none, and gets None. Every rank must call it."""
        if color is not None and color < 0:
            raise InvalidError("color must be 0 or more; None means no group")
        config = comm_config(timeout, algo)
        out = ctypes.c_void_p()
        handle = self._handle
        with handle.using():
            check(
                lib.gradsync_comm_split(
                    handle.value, -1 if color is None else color, key, ctypes.byref(config), ctypes.byref(out)
                )
            )
        return None if out.value is None else Comm(CommHandle(out.value, handle.context, handle.callback))

    def abort(self, reason: Optional[str] = None) -> None:
        """Makes every waiting and later call, on every rank, fail with PeerLostError
        naming this rank. Returns at once; for another thread than the waiting one."""
        handle = self._handle
        with handle.using():
            check(lib.gradsync_comm_abort(handle.value, None if reason is None else reason.encode()))

    # ---- queries ----

    def report(self) -> Report:
        """What the last finished collective did."""
        return to_report(self._query(lib.gradsync_comm_report, _abi.Report()))

    def explain(
        self,
        coll: CollLike,
        nbytes: int,
        dtype: DTypeLike = DType.F32,
        op: OpLike = Op.SUM,
        *,
        ordered: bool = False,
        mem_kind: Union[MemKind, str, int] = MemKind.PLAIN,
    ) -> str:
        """What a collective would do and why, as text lines; does nothing."""
        handle = self._handle
        room = ctypes.create_string_buffer(1 << 16)
        with handle.using():
            check(
                lib.gradsync_comm_explain(
                    handle.value,
                    to_enum(Coll, coll, "collective"),
                    nbytes,
                    to_dtype(dtype),
                    to_enum(Op, op, "op"),
                    int(CollFlags.ORDERED) if ordered else 0,
                    to_enum(MemKind, mem_kind, "memory kind"),
                    room,
                    len(room),
                )
            )
        return text(room.value)

    def info(self) -> CommInfo:
        """What this communicator is."""
        raw = self._query(lib.gradsync_comm_query, _abi.CommInfo())
        return CommInfo(
            rank=raw.rank,
            size=raw.nranks,
            local_rank=raw.local_rank,
            local_ranks=raw.local_ranks,
            nrails=raw.nrails,
            memory_bytes=raw.memory_bytes,
            create_ms=raw.create_ms,
            transport=text(raw.transport),
        )

    def peer(self, rank: int) -> PeerInfo:
        """What is known about a rank."""
        raw = self._query(lib.gradsync_comm_peer, _abi.PeerInfo(), rank)
        return PeerInfo(
            rank=raw.rank,
            pid=raw.pid,
            same_host=bool(raw.same_host),
            alive=bool(raw.alive),
            host=text(raw.host),
            transport=text(raw.transport),
        )

    def peers(self) -> List[PeerInfo]:
        """Every rank, this one included."""
        return [self.peer(rank) for rank in range(self._size)]

    def rails(self) -> List[RailInfo]:
        """The network rails in use; none inside one machine."""
        result = []
        for index in range(self.info().nrails):
            raw = self._query(lib.gradsync_comm_rail, _abi.RailInfo(), index)
            result.append(
                RailInfo(
                    index=raw.index,
                    device=text(raw.device),
                    numa_node=raw.numa_node,
                    up=raw.state == 1,
                    nbytes=raw.bytes,
                    share=raw.share,
                    reason=text(raw.reason),
                )
            )
        return result

    def counters(self) -> Counters:
        """Totals since it was made."""
        raw = self._query(lib.gradsync_comm_counters, _abi.Counters())
        return Counters(
            operations=raw.operations,
            failures=raw.failures,
            nbytes=raw.bytes,
            sleeps=raw.sleeps,
            wakes=raw.wakes,
            wait_ns=raw.wait_ns,
            by_algo={algo: raw.by_algo[algo] for algo in Algo},
        )

    def _query(self, function: Callable[..., int], raw: Any, *arguments: int) -> Any:
        handle = self._handle
        with handle.using():
            check(function(handle.value, *arguments, ctypes.byref(raw)))
        return raw

    # ---- its end ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._handle.value is None

    def close(self) -> None:
        """Ends it; local, never waits for other ranks. Requests in progress end with
        BrokenError; peers that wait for this rank get PeerLostError. May be called
        twice. Raises InvalidError while another thread is in a call on it."""
        self._handle.close()

    def __enter__(self) -> "Comm":
        return self

    def __exit__(
        self,
        kind: "Optional[Type[BaseException]]",
        error: Optional[BaseException],
        trace: "Optional[TracebackType]",
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return "<gradsync.Comm rank %d of %d%s>" % (self._rank, self._size, state)


def _options(
    op: Op = Op.SUM,
    ordered: bool = False,
    prescale: Optional[float] = None,
    timeout: Optional[float] = None,
    algo: AlgoLike = Algo.AUTO,
) -> Any:
    """A pointer to the C options, None where all are default."""
    if not ordered and prescale is None and timeout is None and algo is Algo.AUTO:
        return None
    opts = _abi.CollOpts()
    lib.gradsync_coll_opts_init(ctypes.byref(opts))
    flags = CollFlags(0)
    if ordered:
        flags |= CollFlags.ORDERED
    if prescale is not None:
        opts.prescale = prescale
        if op is not Op.PREMUL_SUM:
            flags |= CollFlags.PRESCALE
    opts.flags = int(flags)
    opts.timeout_ms = timeout_ms(timeout)
    opts.algo = to_enum(Algo, algo, "algo")
    return ctypes.byref(opts)


def _writable(buffer: Buffer, obj: Any, in_place: bool) -> None:
    if buffer.readonly:
        remedy = "pass recv=" if in_place else "pass a writable one"
        raise InvalidError("this %s is read-only, and the result goes there; %s" % (type(obj).__name__, remedy))


def _same(source: Buffer, target: Buffer, source_times: int, target_times: int) -> None:
    """Both of one element type, and their counts fit."""
    if source.dtype != target.dtype:
        assert source.dtype is not None and target.dtype is not None
        raise InvalidError("send holds %s and recv holds %s; they must agree" % (source.dtype.short, target.dtype.short))
    if source.count * source_times != target.count * target_times:
        raise InvalidError(
            "send has %d elements and recv %d; here recv needs %d"
            % (source.count, target.count, source.count * source_times // target_times)
        )
