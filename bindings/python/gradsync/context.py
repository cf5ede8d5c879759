# SPDX-License-Identifier: Apache-2.0
"""The context: settings, memory, and where communicators are made."""
from __future__ import annotations

import ctypes
import logging
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional, Sequence, Tuple, Type, Union

from . import _abi, _lib
from ._abi import AllgatherFn, DType, LogFn, LogLevel, MemFlags, Progress
from ._convert import AlgoLike, DTypeLike, timeout_ms, to_dtype, to_enum
from ._lib import lib, text
from .buffers import look
from .comm import Comm, CommHandle, comm_config
from .errors import InvalidError, check
from .info import SystemInfo, TransportInfo
from .memory import Memory, MemHandle

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

#: Called with a level and a line, on any thread; it must not call gradsync.
LogCallback = Callable[[LogLevel, str], None]
#: Gives this rank's bytes, returns those of all ranks, by rank.
Allgather = Callable[[bytes], Sequence[bytes]]

_PYTHON_LEVELS = {
    LogLevel.ERROR: logging.ERROR,
    LogLevel.WARN: logging.WARNING,
    LogLevel.INFO: logging.INFO,
    LogLevel.DEBUG: logging.DEBUG,
}


class ContextHandle:
    """Owns the C handle, which must end after its memory and communicators. They
    hold a reference, and are counted besides: the garbage collector finalises a
    cycle of objects in any order."""

    __slots__ = ("value", "log", "lock", "children", "dropped", "era", "__weakref__")

    def __init__(self, value: int, log: Any) -> None:
        self.value = value
        self.log = log  # the C callback, alive as long as the library may call it
        self.lock = threading.Lock()
        self.children = 0
        self.era = _lib.era
        self.dropped = False

    def retain(self) -> None:
        """One more child."""
        with self.lock:
            self.children += 1

    def release(self) -> None:
        """A child has ended."""
        with self.lock:
            self.children -= 1
            last = self.dropped and self.children == 0
        if last and _lib.era == self.era:
            lib.gradsync_context_destroy(self.value)

    def __del__(self) -> None:
        with self.lock:
            self.dropped = True
            last = self.children == 0
        if last and _lib is not None and _lib.era == self.era:
            lib.gradsync_context_destroy(self.value)


class Context:
    """Settings and memory; one a process is usual.

    Args:
        log: receives the library's log lines: a function (level, line) or a
            logging.Logger. None: nothing is printed, unless GRADSYNC_LOG asks.
        log_level: the highest level that is delivered; None: "warn".
        timeout: seconds that any wait may take at most; None: 300, or GRADSYNC_TIMEOUT.
        progress: "auto" or "thread": posted collectives go on by themselves;
            "manual": only in test() and wait().
        strict: a fallback is an error, not a warning.
        transport: "auto", "shm"; None: GRADSYNC_TRANSPORT.
        key: the job's key; None: GRADSYNC_KEY, GRADSYNC_KEY_FILE, or a per-user default.

    close(), or leaving a ``with`` block, ends it once its communicators and
    memory are gone as well.
    """

    __slots__ = ("_handle", "__weakref__")

    def __init__(
        self,
        *,
        log: Union[LogCallback, logging.Logger, None] = None,
        log_level: Union[LogLevel, str, int, None] = None,
        timeout: Optional[float] = None,
        progress: Union[Progress, str, int] = Progress.AUTO,
        strict: bool = False,
        transport: Optional[str] = None,
        key: Optional[str] = None,
    ) -> None:
        self._handle: Optional[ContextHandle] = None
        config = _abi.Config()
        lib.gradsync_config_init(ctypes.byref(config))
        callback = LogFn() if log is None else LogFn(_log_function(log))
        if log is not None:
            config.log = callback
        if log_level is not None:
            config.log_level = to_enum(LogLevel, log_level, "log level")
        config.timeout_ms = timeout_ms(timeout)
        config.progress = to_enum(Progress, progress, "progress")
        config.strict = int(strict)
        config.transport = None if transport is None else transport.encode()
        config.key = None if key is None else key.encode()
        out = ctypes.c_void_p()
        check(lib.gradsync_context_create(ctypes.byref(config), ctypes.byref(out)))
        assert out.value
        self._handle = ContextHandle(out.value, callback)

    def _open(self) -> ContextHandle:
        if self._handle is None:
            raise InvalidError("this Context is closed; make another one")
        return self._handle

    # ---- memory ----

    def alloc(self, nbytes: int, *, numa_node: Optional[int] = None, huge: bool = True) -> Memory:
        """Zeroed memory that local ranks reach directly: the fastest to reduce.

        numa_node: preferred node; None: no preference. huge=False: no huge pages.
        """
        handle = self._open()
        config = _mem_config(numa_node, MemFlags(0) if huge else MemFlags.NO_HUGE)
        if nbytes <= 0:
            raise InvalidError("nbytes must be more than 0")
        out = ctypes.c_void_p()
        check(lib.gradsync_mem_alloc(handle.value, nbytes, ctypes.byref(config), ctypes.byref(out)))
        assert out.value
        return Memory(MemHandle(out.value, handle, None, nbytes))

    def alloc_array(
        self,
        shape: Union[int, Sequence[int]],
        dtype: DTypeLike = DType.F32,
        *,
        numa_node: Optional[int] = None,
        huge: bool = True,
    ) -> "np.ndarray[Any, Any]":
        """A zeroed numpy array in library memory, which lives as long as the array
        or any view of it. bf16: see Memory.numpy()."""
        count = 1
        for extent in (shape,) if isinstance(shape, int) else shape:
            count *= extent
        memory = self.alloc(max(1, count * to_dtype(dtype).nbytes), numa_node=numa_node, huge=huge)
        return memory.numpy(dtype, shape)

    def register(self, buffer: Any, *, remap: bool = False, numa_node: Optional[int] = None) -> Memory:
        """Makes the caller's memory known to the library, and keeps it alive.

        remap: move its whole private pages onto shared ones, in place and with
        their contents, so that local ranks reach them directly. No other thread
        may write to them meanwhile. Only for memory of its own mapping, as large
        numpy arrays have.
        """
        handle = self._open()
        found = look(buffer, typed=False)
        if remap and found.readonly:
            raise InvalidError("read-only memory cannot be remapped; pass a writable buffer")
        config = _mem_config(numa_node, MemFlags.REMAP if remap else MemFlags(0))
        out = ctypes.c_void_p()
        check(
            lib.gradsync_mem_register(
                handle.value, found.address, found.nbytes, ctypes.byref(config), ctypes.byref(out)
            )
        )
        assert out.value
        return Memory(MemHandle(out.value, handle, found, found.nbytes))

    # ---- communicators ----

    def comm(
        self,
        rank: int = 0,
        nranks: int = 1,
        allgather: Optional[Allgather] = None,
        *,
        timeout: Optional[float] = None,
        algo: AlgoLike = _abi.Algo.AUTO,
    ) -> Comm:
        """This rank's communicator of nranks ranks; every rank must call it.

        allgather exchanges bytes while it is made: it gets this rank's, and returns
        a sequence with those of all ranks in rank order, all of one length; mpi4py's
        ``MPI.COMM_WORLD.allgather`` serves as it is. An exception in it comes out here.
        timeout: default deadline of its waits in seconds; None: the context's.
        algo: for every collective of it; "auto": by prediction.
        """
        handle = self._open()
        config = comm_config(timeout, algo)
        out = ctypes.c_void_p()
        if allgather is None:
            check(
                lib.gradsync_comm_create(
                    handle.value, rank, nranks, AllgatherFn(), None, ctypes.byref(config), ctypes.byref(out)
                )
            )
            callback = None
        else:
            call = _AllgatherCall(allgather, nranks)
            callback = AllgatherFn(call)
            code = lib.gradsync_comm_create(
                handle.value, rank, nranks, callback, None, ctypes.byref(config), ctypes.byref(out)
            )
            if call.error is not None:
                if out.value:
                    lib.gradsync_comm_destroy(out.value)
                raise call.error
            check(code)
        assert out.value
        return Comm(CommHandle(out.value, handle, callback))

    def comm_from_env(self, *, timeout: Optional[float] = None, algo: AlgoLike = _abi.Algo.AUTO) -> Comm:
        """The communicator of all ranks that gradsync-run, torchrun, Slurm, Open MPI
        or MPICH started; they find each other through the environment."""
        handle = self._open()
        config = comm_config(timeout, algo)
        out = ctypes.c_void_p()
        check(lib.gradsync_comm_create_from_env(handle.value, ctypes.byref(config), ctypes.byref(out)))
        assert out.value
        return Comm(CommHandle(out.value, handle, None))

    # ---- queries ----

    def info(self) -> SystemInfo:
        """What the library found on this machine."""
        raw = _abi.SystemInfo()
        check(lib.gradsync_context_query(self._open().value, ctypes.byref(raw)))
        return SystemInfo(
            cpus=raw.cpus,
            numa_nodes=raw.numa_nodes,
            rdma_devices=raw.rdma_devices,
            page_bytes=raw.page_bytes,
            huge_page_bytes=raw.huge_page_bytes,
            cpu_tier=text(raw.cpu_tier),
            cpu_model=text(raw.cpu_model),
            huge_pages=text(raw.huge_pages),
        )

    def transports(self) -> List[TransportInfo]:
        """Every transport that the library knows, usable here or not, and why."""
        return list(self._transports())

    def _transports(self) -> Iterator[TransportInfo]:
        index = 0
        while True:
            raw = _abi.TransportInfo()
            try:
                check(lib.gradsync_context_transport(self._open().value, index, ctypes.byref(raw)))
            except InvalidError:
                if self._handle is None:
                    raise
                return  # past the last
            yield TransportInfo(name=text(raw.name), usable=bool(raw.usable), reason=text(raw.reason))
            index += 1

    # ---- its end ----

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._handle is None

    def close(self) -> None:
        """Ends the context; memory and communicators of it that are still there keep
        what they need of it. May be called twice."""
        self._handle = None

    def __enter__(self) -> "Context":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: "Optional[TracebackType]",
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<gradsync.Context%s>" % (" closed" if self._handle is None else "")


def _mem_config(numa_node: Optional[int], flags: MemFlags) -> _abi.MemConfig:
    config = _abi.MemConfig()
    lib.gradsync_mem_config_init(ctypes.byref(config))
    if numa_node is not None and numa_node < 0:
        raise InvalidError("numa_node must be 0 or more; None means no preference")
    config.numa_node = 0 if numa_node is None else numa_node + 1
    config.flags = int(flags)
    return config


def _log_function(log: Union[LogCallback, logging.Logger]) -> Callable[[Any, int, bytes], None]:
    # An exception here cannot reach anybody but sys.unraisablehook, where ctypes sends it.
    if isinstance(log, logging.Logger):
        logger = log

        def to_logger(arg: Any, level: int, line: bytes) -> None:
            logger.log(_PYTHON_LEVELS.get(LogLevel(level), logging.INFO), "%s", text(line))

        return to_logger
    function = log

    def to_function(arg: Any, level: int, line: bytes) -> None:
        function(LogLevel(level), text(line))

    return to_function


class _AllgatherCall:
    """The C callback around a Python one; keeps the exception for the caller."""

    def __init__(self, function: Allgather, nranks: int) -> None:
        self.function = function
        self.nranks = nranks
        self.error: Optional[BaseException] = None

    def __call__(self, arg: Any, send: int, recv: int, nbytes: int) -> int:
        if self.error is not None:
            return 1
        try:
            parts = [bytes(part) for part in self.function(ctypes.string_at(send, nbytes))]
            if len(parts) != self.nranks or any(len(part) != nbytes for part in parts):
                raise InvalidError(
                    "allgather must return %d times %d bytes, and returned lengths %r"
                    % (self.nranks, nbytes, [len(part) for part in parts])
                )
            ctypes.memmove(recv, b"".join(parts), nbytes * self.nranks)
        except BaseException as error:  # also KeyboardInterrupt: the caller gets it
            self.error = error
            return 1
        return 0
