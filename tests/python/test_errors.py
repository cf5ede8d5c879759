# SPDX-License-Identifier: Apache-2.0
"""Errors of the library as exceptions, and exceptions of callbacks carried through."""
from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import unittest
from typing import Any, List, Optional, Type

import gradsync
from gradsync import ErrorCode, errors
from harness import Exchange, attempt, ranks, threads

N = 3


class Classes(unittest.TestCase):
    def test_one_for_each_code(self) -> None:
        codes = {int(code) for code in ErrorCode if code < 0}
        self.assertEqual(set(errors.BY_CODE), codes)
        for code, kind in errors.BY_CODE.items():
            self.assertTrue(issubclass(kind, gradsync.GradsyncError))
            self.assertEqual(kind.code, code)
            self.assertIsInstance(errors.from_code(code), kind)

    def test_twins(self) -> None:
        """handlers that know nothing of gradsync catch them too"""
        for kind, twin in (
            (gradsync.InvalidError, ValueError),
            (gradsync.NoMemoryError, MemoryError),
            (gradsync.UnsupportedError, NotImplementedError),
            (gradsync.TimedOutError, TimeoutError),
            (gradsync.PeerLostError, ConnectionError),
            (gradsync.AuthError, PermissionError),
            (gradsync.SystemCallError, OSError),
        ):
            self.assertTrue(issubclass(kind, twin))
            error = kind("a sentence", rank=1, peer=2, rail=3, step=4, errno=5, wc_status=6, seq=7)
            self.assertEqual(str(error), "%s: a sentence" % kind.code.name)
            self.assertEqual((error.rank, error.peer, error.rail, error.step), (1, 2, 3, 4))
            self.assertEqual((error.errno, error.wc_status, error.seq), (5, 6, 7))

    def test_pickle(self) -> None:
        for kind in errors.BY_CODE.values():
            copy = pickle.loads(pickle.dumps(kind("a sentence", peer=2, errno=5, seq=7)))
            self.assertIs(type(copy), kind)
            self.assertEqual((copy.message, copy.peer, copy.errno, copy.seq), ("a sentence", 2, 5, 7))


class Arguments(unittest.TestCase):
    def test_wrong_arguments(self) -> None:
        with gradsync.Context() as ctx, ctx.comm() as comm:
            for call in (
                lambda: comm.all_reduce(bytearray(4), op="nonsense"),
                lambda: comm.all_reduce(bytearray(4), algo="nonsense"),
                lambda: comm.all_reduce(bytearray(4), timeout=0),
                lambda: comm.all_reduce(bytearray(4), timeout=-1.0),
                lambda: comm.explain("nonsense", 4),
                lambda: ctx.alloc(0),
                lambda: ctx.alloc(-5),
                lambda: ctx.alloc(4, numa_node=-1),
                lambda: ctx.comm(5, 2, lambda part: [part, part]),
                lambda: ctx.comm(0, 2),
                lambda: comm.split(-3),
                lambda: gradsync.Context(log_level="nonsense"),
                lambda: gradsync.Context(progress="nonsense"),
            ):
                with self.assertRaises(gradsync.InvalidError) as caught:
                    call()
                self.assertIsInstance(caught.exception, ValueError)
                self.assertGreater(len(caught.exception.message), 10)

    def test_wrong_roots_and_peers(self) -> None:
        with gradsync.Context() as ctx, ctx.comm() as comm:
            for call in (
                lambda: comm.broadcast(bytearray(4), root=1),
                lambda: comm.reduce(bytearray(4), root=-1),
                lambda: comm.peer(1),
            ):
                with self.assertRaises(gradsync.InvalidError):
                    call()
            comm.barrier()  # an INVALID call changes nothing

    def test_integers_cannot_be_scaled(self) -> None:
        with gradsync.Context() as ctx, ctx.comm() as comm:
            with self.assertRaises(gradsync.InvalidError):
                comm.all_reduce(bytearray(4), dtype="i32", op="premul_sum", prescale=2.0)

    def test_report_before_the_first(self) -> None:
        with gradsync.Context() as ctx, ctx.comm() as comm:
            with self.assertRaises(gradsync.InvalidError):
                comm.report()

    def test_closed(self) -> None:
        ctx = gradsync.Context()
        comm = ctx.comm()
        memory = ctx.alloc(64)
        for thing in (comm, memory, ctx):
            thing.close()
            thing.close()
            self.assertTrue(thing.closed)
            self.assertIn("closed", repr(thing))
        for call in (comm.barrier, memory.info, memory.view, ctx.info, ctx.comm, lambda: ctx.alloc(4), ctx.transports):
            with self.assertRaisesRegex(gradsync.InvalidError, "closed"):
                call()


class Mismatch(unittest.TestCase):
    """A rank that calls something else gives the same error on every rank."""

    def check(self, odd: Any, even: Any, kind: Type[Exception] = gradsync.MismatchError) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            error = attempt(lambda: odd(comm) if comm.rank == 1 else even(comm))
            return error

        for error in ranks(N, body):
            self.assertIsInstance(error, kind)
            self.assertRegex(error.message, r"\d")

    def test_count(self) -> None:
        self.check(
            lambda comm: comm.all_reduce(bytearray(400), dtype="f32"),
            lambda comm: comm.all_reduce(bytearray(404), dtype="f32"),
        )

    def test_dtype(self) -> None:
        self.check(
            lambda comm: comm.all_reduce(bytearray(400), dtype="f32"),
            lambda comm: comm.all_reduce(bytearray(400), dtype="i32"),
        )

    def test_op(self) -> None:
        self.check(
            lambda comm: comm.all_reduce(bytearray(400), dtype="f32", op="min"),
            lambda comm: comm.all_reduce(bytearray(400), dtype="f32", op="max"),
        )

    def test_collective(self) -> None:
        self.check(
            lambda comm: comm.broadcast(bytearray(400), dtype="f32"),
            lambda comm: comm.all_reduce(bytearray(400), dtype="f32"),
        )

    def test_root(self) -> None:
        self.check(lambda comm: comm.broadcast(bytearray(400)), lambda comm: comm.broadcast(bytearray(400), root=2))

    def test_posted(self) -> None:
        self.check(
            lambda comm: comm.all_reduce_post(bytearray(400), dtype="f32").wait(),
            lambda comm: comm.all_reduce(bytearray(404), dtype="f32"),
        )


class Lost(unittest.TestCase):
    def test_abort(self) -> None:
        """from another thread than the one that waits, and with the reason"""
        exchange = Exchange(N)

        def body(rank: int) -> Any:
            with gradsync.Context(timeout=60) as ctx, ctx.comm(rank, N, exchange.of(rank)) as comm:
                exchange.of(rank)(b"")  # everybody has one: an abort ends its making too
                if rank == 1:
                    errors: List[Optional[gradsync.GradsyncError]] = []
                    worker = threading.Thread(target=lambda: errors.append(attempt(comm.barrier)))
                    worker.start()
                    comm.abort("the loss is not a number")
                    worker.join()
                    error = errors[0]
                    exchange.of(rank)(b"")
                elif rank == 0:
                    error = attempt(comm.barrier)
                    exchange.of(rank)(b"")
                else:  # this one comes too late: nobody can be through
                    exchange.of(rank)(b"")
                    error = attempt(comm.barrier)
                self.assertIsInstance(attempt(comm.barrier), (gradsync.PeerLostError, gradsync.BrokenError))
                exchange.of(rank)(b"")
                return error

        for error in threads(N, body):
            self.assertIsInstance(error, gradsync.PeerLostError)
            self.assertEqual(error.peer, 1)
            self.assertIn("the loss is not a number", error.message)

    def test_left(self) -> None:
        """a rank closes its communicator while others wait for it"""
        exchange = Exchange(N)

        def body(rank: int) -> Any:
            with gradsync.Context(timeout=60) as ctx, ctx.comm(rank, N, exchange.of(rank)) as comm:
                if rank == 2:
                    return None
                error = attempt(comm.barrier)
                self.assertIsInstance(error, ConnectionError)
                return error

        for error in threads(N, body)[:2]:
            self.assertEqual(error.peer, 2)

    def test_timeout(self) -> None:
        exchange = Exchange(2)

        def body(rank: int) -> Any:
            with gradsync.Context(timeout=60) as ctx, ctx.comm(rank, 2, exchange.of(rank)) as comm:
                error = attempt(lambda: comm.barrier(timeout=0.05)) if rank == 0 else None
                exchange.of(rank)(b"")
                return error

        error = threads(2, body)[0]
        self.assertIsInstance(error, gradsync.TimedOutError)
        self.assertIsInstance(error, TimeoutError)
        self.assertEqual(error.peer, 1)

    def test_close_while_another_thread_waits(self) -> None:
        exchange = Exchange(2)

        def body(rank: int) -> None:
            with gradsync.Context(timeout=60) as ctx, ctx.comm(rank, 2, exchange.of(rank)) as comm:
                exchange.of(rank)(b"")
                if rank == 0:
                    entered = threading.Event()
                    errors: List[Optional[gradsync.GradsyncError]] = []

                    def wait() -> None:
                        with comm._handle.using():  # as a call in progress, from a known moment on
                            entered.set()
                            errors.append(attempt(comm.barrier))

                    worker = threading.Thread(target=wait)
                    worker.start()
                    entered.wait()
                    with self.assertRaisesRegex(gradsync.InvalidError, "abort"):
                        comm.close()
                    comm.abort()
                    worker.join()
                    self.assertIsInstance(errors[0], gradsync.PeerLostError)
                exchange.of(rank)(b"")

        threads(2, body)


class Callbacks(unittest.TestCase):
    def test_allgather_exception(self) -> None:
        class Mine(Exception):
            pass

        def raises(part: bytes) -> List[bytes]:
            raise Mine("from the callback")

        def interrupts(part: bytes) -> List[bytes]:
            raise KeyboardInterrupt

        with gradsync.Context() as ctx:
            with self.assertRaisesRegex(Mine, "from the callback"):
                ctx.comm(0, 2, raises)
            with self.assertRaises(KeyboardInterrupt):
                ctx.comm(0, 2, interrupts)
            with ctx.comm() as comm:  # the context is none the worse for it
                comm.barrier()

    def test_allgather_of_wrong_lengths(self) -> None:
        with gradsync.Context() as ctx:
            for wrong in (lambda part: [part], lambda part: [part, part[:-1]], lambda part: [part, part, part]):
                with self.assertRaisesRegex(gradsync.InvalidError, "allgather must return 2 times"):
                    ctx.comm(0, 2, wrong)
            with self.assertRaises(TypeError):
                ctx.comm(0, 2, lambda part: None)  # type: ignore[arg-type, return-value]

    def test_log(self) -> None:
        """lines arrive with their level, by function and by logger"""
        import logging

        lines: List[Any] = []
        with gradsync.Context(log=lambda level, line: lines.append((level, line)), log_level="debug") as ctx:
            with ctx.comm() as comm:
                comm.barrier()
        self.assertTrue(lines)
        for level, line in lines:
            self.assertIsInstance(level, gradsync.LogLevel)
            self.assertIsInstance(line, str)
            self.assertFalse(line.endswith("\n"))
        with self.assertLogs("gradsync.test", "DEBUG") as logs:
            with gradsync.Context(log=logging.getLogger("gradsync.test"), log_level="debug") as ctx:
                with ctx.comm() as comm:
                    comm.barrier()
        self.assertEqual(len(logs.records), len(lines))

    def test_log_level_none(self) -> None:
        lines: List[Any] = []
        with gradsync.Context(log=lambda level, line: lines.append(line), log_level="none") as ctx, ctx.comm() as comm:
            comm.barrier()
        self.assertEqual(lines, [])


class Finding(unittest.TestCase):
    def run_import(self, **env: str) -> Any:
        code = "import gradsync; print(gradsync.library_path)"
        full = {name: value for name, value in os.environ.items() if name != "GRADSYNC_LIBRARY"}
        full.update(env, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        return subprocess.run([sys.executable, "-c", code], env=full, capture_output=True, text=True)

    def test_named_library(self) -> None:
        run = self.run_import(GRADSYNC_LIBRARY=gradsync.library_path)
        self.assertEqual((run.returncode, run.stdout.strip()), (0, gradsync.library_path), run.stderr)

    def test_named_folder(self) -> None:
        run = self.run_import(GRADSYNC_LIBRARY=os.path.dirname(gradsync.library_path))
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertTrue(os.path.samefile(run.stdout.strip(), gradsync.library_path))

    def test_missing_library(self) -> None:
        run = self.run_import(GRADSYNC_LIBRARY="/nonexistent/libgradsync.so.0")
        self.assertNotEqual(run.returncode, 0)
        self.assertIn("ImportError: gradsync: cannot load /nonexistent/libgradsync.so.0 (GRADSYNC_LIBRARY)", run.stderr)
        self.assertIn("meson install", run.stderr)

    def test_another_library(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "libgradsync.so.0")
            with open(path, "wb") as file:
                file.write(b"no library")
            run = self.run_import(GRADSYNC_LIBRARY=path)
        self.assertIn("ImportError: gradsync: cannot load", run.stderr)

    def test_too_old_a_library(self) -> None:
        import ctypes.util

        libc = ctypes.util.find_library("m")
        if libc is None:
            self.skipTest("no other library to try")
        run = self.run_import(GRADSYNC_LIBRARY=libc)
        self.assertIn("is older than this Python package", run.stderr)


if __name__ == "__main__":
    unittest.main()
