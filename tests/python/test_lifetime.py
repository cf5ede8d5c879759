# SPDX-License-Identifier: Apache-2.0
"""Who keeps what alive: memory below its views, contexts below their memory, exits."""
from __future__ import annotations

import gc
import os
import subprocess
import sys
import unittest
import weakref
from typing import Any

import gradsync
from harness import ranks


class MemoryLifetime(unittest.TestCase):
    def test_view_keeps_memory_and_context(self) -> None:
        ctx = gradsync.Context()
        memory = ctx.alloc(4096)
        handle = weakref.ref(memory._handle)
        context = weakref.ref(ctx._handle)
        view = memory.view("f32")
        view[7] = 1.5
        memory.close()
        ctx.close()
        del memory, ctx
        gc.collect()
        self.assertIsNotNone(handle())
        self.assertIsNotNone(context())
        part = view[4:8]
        del view
        gc.collect()
        self.assertEqual(part[3], 1.5)
        del part
        gc.collect()
        self.assertIsNone(handle())
        self.assertIsNone(context())

    def test_closed_without_views_is_freed_at_once(self) -> None:
        with gradsync.Context() as ctx:
            memory = ctx.alloc(4096)
            handle = weakref.ref(memory._handle)
            memory.close()
            self.assertIsNone(handle())

    def test_many(self) -> None:
        """memory comes back: more than the machine has, one after the other"""
        before = _mapped()
        with gradsync.Context() as ctx:
            for _ in range(200):
                with ctx.alloc(16 << 20) as memory:
                    memory.view()[0] = 1
        self.assertLess(_mapped() - before, 1 << 30)

    def test_info(self) -> None:
        with gradsync.Context() as ctx, ctx.alloc(10000) as memory:
            info = memory.info()
            self.assertEqual((info.kind, info.nbytes, info.address), (gradsync.MemKind.LIBRARY, 10000, memory.address))
            self.assertTrue(info.shareable, info.reason)
            self.assertGreaterEqual(info.page_bytes, 4096)
            self.assertEqual((len(memory), memory.nbytes), (10000, 10000))
            self.assertEqual(bytes(memory.view()), bytes(10000))
            if sys.version_info >= (3, 12):
                memoryview(memory)[3] = 9  # type: ignore[arg-type]
                self.assertEqual(memory.view()[3], 9)

    def test_views_hold_whole_elements(self) -> None:
        with gradsync.Context() as ctx, ctx.alloc(4 * 5 + 3) as memory:
            self.assertEqual(len(memory.view("f32")), 5)
            self.assertEqual(len(memory.view("bf16")), 11)
            for dtype in gradsync.DType:
                self.assertEqual(len(memory.view(dtype)), 23 // dtype.nbytes)

    def test_registered_memory_is_held(self) -> None:
        data = bytearray(100000)
        with gradsync.Context() as ctx:
            with ctx.register(data) as memory:
                self.assertEqual(memory.nbytes, 100000)
                with self.assertRaises(BufferError):
                    data.append(1)
            data.append(1)
            with self.assertRaises(gradsync.InvalidError):
                ctx.register(b"read-only", remap=True)

    def test_collectives_on_memory_objects(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            with ctx.alloc(400) as memory:
                memory.view("f32")[:] = memoryview(b"".join([_one(comm.rank + 1)] * 100)).cast("f")
                self.assertIs(comm.all_reduce(memory, dtype="f32"), memory)
                comm.barrier()
                return set(memory.view("f32"))

        self.assertEqual(ranks(3, body), [{6.0}] * 3)


class CommLifetime(unittest.TestCase):
    def test_dropped_comm_ends(self) -> None:
        with gradsync.Context() as ctx:
            comm = ctx.comm()
            handle = weakref.ref(comm._handle)
            del comm
            gc.collect()
            self.assertIsNone(handle())

    def test_context_outlives_its_close(self) -> None:
        ctx = gradsync.Context()
        comm = ctx.comm()
        ctx.close()
        comm.barrier()
        comm.close()

    def test_request_keeps_comm(self) -> None:
        with gradsync.Context() as ctx:
            comm = ctx.comm()
            request = comm.all_reduce_post(bytearray(400), dtype="f32")
            del comm
            gc.collect()
            request.wait()
            self.assertEqual(request.report().nbytes, 400)

    def test_cycles(self) -> None:
        """objects in reference cycles end in any order"""
        for _ in range(20):
            ctx = gradsync.Context()
            cycle: Any = [ctx, ctx.comm(), ctx.alloc(100)]
            cycle.append(cycle[1].all_reduce_post(cycle[2], dtype="f32"))
            cycle.append(cycle[2].view())
            cycle.append(cycle)
            del cycle, ctx
            gc.collect()


class Exits(unittest.TestCase):
    """The interpreter ends while everything is still open."""

    def run_program(self, body: str) -> None:
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        code = "import gradsync, sys, threading\nctx = gradsync.Context()\ncomm = ctx.comm()\n" + body
        run = subprocess.run([sys.executable, "-X", "dev", "-c", code], env=env, capture_output=True, text=True, timeout=120)
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, "", ""))

    def test_all_open(self) -> None:
        self.run_program("memory = ctx.alloc(4096); view = memory.view(); request = comm.barrier_post()")

    def test_log_callback(self) -> None:
        self.run_program(
            "logged = gradsync.Context(log=lambda level, line: None, log_level='debug')\n"
            "other = logged.comm(); requests = [other.barrier_post() for _ in range(10)]"
        )

    def test_system_exit(self) -> None:
        self.run_program("data = bytearray(400); request = comm.all_reduce_post(data, dtype='f32'); sys.exit(0)")

    def test_kept_in_a_module(self) -> None:
        self.run_program("sys.modules['keep'] = [ctx, comm, ctx.alloc(100).view()]")

    def test_daemon_thread_in_a_call(self) -> None:
        self.run_program(
            "parts = [b'', b'']; both = threading.Barrier(2)\n"
            "def exchange(rank):\n"
            "    def call(part):\n"
            "        parts[rank] = part; both.wait(); everyone = list(parts); both.wait()\n"
            "        return everyone\n"
            "    return call\n"
            "entered = threading.Event()\n"
            "def rank1():\n"
            "    pair = gradsync.Context().comm(1, 2, exchange(1))\n"
            "    entered.set()\n"
            "    pair.barrier(timeout=60)\n"
            "threading.Thread(target=rank1, daemon=True).start()\n"
            "pair = gradsync.Context().comm(0, 2, exchange(0))\n"
            "entered.wait()\n"
            "import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
        )

    def test_fork(self) -> None:
        """a forked child that only exits leaves the parent's ranks alone"""
        self.run_program(
            "import os\n"
            "child = os.fork()\n"
            "if child == 0: os._exit(0)\n"
            "os.waitpid(child, 0)\n"
            "comm.barrier()\n"
        )


def _one(value: float) -> bytes:
    import struct

    return struct.pack("f", value)


def _mapped() -> int:
    """Bytes of address space of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    unittest.main()
