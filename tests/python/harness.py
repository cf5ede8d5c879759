# SPDX-License-Identifier: Apache-2.0
"""What the tests share: ranks as threads, ranks as processes, raw elements."""
from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import unittest
from typing import Any, Callable, Dict, List, Optional, Sequence, TypeVar

import gradsync
from gradsync import DType

HERE = os.path.dirname(os.path.abspath(__file__))
DEADLINE = 120.0  # seconds until a hang is a failure; nothing depends on it otherwise

T = TypeVar("T")


class Exchange:
    """An all-gather between threads."""

    def __init__(self, nranks: int) -> None:
        self.barrier = threading.Barrier(nranks, timeout=DEADLINE)
        self.parts = [b""] * nranks

    def of(self, rank: int) -> Callable[[bytes], List[bytes]]:
        def allgather(part: bytes) -> List[bytes]:
            self.parts[rank] = part
            self.barrier.wait()
            everyone = list(self.parts)
            self.barrier.wait()
            return everyone

        return allgather


def threads(nranks: int, function: Callable[[int], T]) -> List[T]:
    """Calls function(rank) on one thread a rank; returns the results by rank. The
    first exception of any comes out here."""
    results: List[Any] = [None] * nranks
    errors: List[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = function(rank)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(nranks)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
    if errors:
        raise errors[0]
    if any(worker.is_alive() for worker in workers):
        raise AssertionError("a rank hangs")
    return results


def ranks(nranks: int, function: Callable[[gradsync.Context, gradsync.Comm], T], **config: Any) -> List[T]:
    """Calls function(context, comm) on each rank of a new communicator of threads."""
    exchange = Exchange(nranks)

    def body(rank: int) -> T:
        with gradsync.Context(timeout=DEADLINE / 2) as ctx:
            with ctx.comm(rank, nranks, exchange.of(rank), **config) as comm:
                result = function(ctx, comm)
                return result

    return threads(nranks, body)


def attempt(function: Callable[[], Any]) -> Optional[gradsync.GradsyncError]:
    """The error that function raises, None if it does not."""
    try:
        function()
    except gradsync.GradsyncError as error:
        return error
    return None


class Outcome:
    """What a job of processes did."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output

    def lines(self) -> Dict[int, List[Any]]:
        """The JSON lines of each rank."""
        result: Dict[int, List[Any]] = {}
        for line in self.output.splitlines():
            mark, _, rest = line.partition("] ")
            if mark.startswith("[") and mark[1:].isdigit() and rest.startswith(("{", "[")):
                result.setdefault(int(mark[1:]), []).append(json.loads(rest))
        return result


def launcher() -> str:
    """gradsync-run; skips the test if there is none."""
    path = os.environ.get("GRADSYNC_RUN", "")
    if not os.path.exists(path):
        raise unittest.SkipTest("gradsync-run was not built (GRADSYNC_RUN is %r)" % path)
    return path


def processes(nranks: int, program: str, *arguments: str, options: Sequence[str] = (), quiet: bool = True) -> Outcome:
    """Runs a Python program on nranks ranks under gradsync-run."""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    command = [launcher(), "-n", str(nranks), "--output", "prefix", "--timeout", str(int(DEADLINE)), *options]
    command += ["--", sys.executable, os.path.join(HERE, program), *arguments]
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Outcome(run.returncode, run.stdout)


# ---- elements without numpy ----------------------------------------------------

_LETTERS = {
    DType.F32: "f",
    DType.F64: "d",
    DType.F16: "e",
    DType.I8: "b",
    DType.U8: "B",
    DType.I32: "i",
    DType.U32: "I",
    DType.I64: "q",
    DType.U64: "Q",
}


def encode(dtype: DType, values: Sequence[float]) -> bytearray:
    """The bytes of values in a type; they must be exact in it."""
    if dtype is DType.BF16:
        return bytearray(b"".join(struct.pack("<f", value)[2:] for value in values))
    if dtype in (DType.F32, DType.F64, DType.F16):
        return bytearray(struct.pack("<%d%s" % (len(values), _LETTERS[dtype]), *values))
    return bytearray(struct.pack("<%d%s" % (len(values), _LETTERS[dtype]), *(int(value) for value in values)))


def decode(dtype: DType, raw: Any) -> List[float]:
    data = bytes(raw)
    if dtype is DType.BF16:
        return [struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(0, len(data), 2)]
    return [float(value) for value in struct.unpack("<%d%s" % (len(data) // dtype.nbytes, _LETTERS[dtype]), data)]
