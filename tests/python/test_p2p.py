# SPDX-License-Identifier: Apache-2.0
"""Messages, one-sided access and signals between two ranks."""
from __future__ import annotations

import array
import asyncio
import unittest
from typing import Any, List

import gradsync
from harness import attempt, ranks


class Messages(unittest.TestCase):
    def test_lengths(self) -> None:
        """messages of all lengths arrive as they were sent"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> List[int]:
            right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
            got = []
            for nbytes in (0, 1, 240, 241, 50000, 1000000):
                request = comm.send_post(right, bytes([comm.rank]) * nbytes, tag=nbytes)
                into = bytearray(nbytes + 5)
                got.append(comm.recv(left, into, tag=nbytes))
                assert into == bytes([left]) * nbytes + bytes(5)
                request.wait()
            return got

        for n in (1, 2, 3):
            for got in ranks(n, body):
                self.assertEqual(got, [0, 1, 240, 241, 50000, 1000000])

    def test_posted(self) -> None:
        """a posted receive tells its length; reports name what was done"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            peer = 1 - comm.rank
            into = [array.array("d", [0.0] * 1000) for _ in range(4)]
            receives = [comm.recv_post(peer, into[i], tag=i) for i in range(4)]
            for i in reversed(range(4)):
                comm.send(peer, array.array("d", [float(i)] * (10 * i)), tag=i)
            lengths = [request.wait() for request in receives]
            assert [request.result for request in receives] == lengths
            assert all(into[i][: 10 * i] == array.array("d", [float(i)] * (10 * i)) for i in range(4))
            report = receives[3].report()
            return lengths, report.coll, report.nbytes, report.algo

        for told in ranks(2, body):
            self.assertEqual(told, ([0, 80, 160, 240], gradsync.P2p.RECV, 8000, gradsync.Algo.AUTO))

    def test_asyncio(self) -> None:
        """a posted receive can be awaited"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> int:
            async def both() -> int:
                request = comm.recv_post(1 - comm.rank, bytearray(100))
                comm.send(1 - comm.rank, b"hello")
                received: int = await request
                return received

            return asyncio.run(both())

        self.assertEqual(ranks(2, body), [5, 5])

    def test_too_long(self) -> None:
        """a message that is too long is a mismatch that names both lengths"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            if comm.rank == 0:
                comm.send(1, bytes(100))
                comm.send(1, bytes(10))
                return None
            error = attempt(lambda: comm.recv(0, bytearray(50)))
            return error, comm.recv(0, bytearray(50))

        error, after = ranks(2, body)[1]
        self.assertIsInstance(error, gradsync.MismatchError)
        self.assertIn("100 bytes", error.message)
        self.assertIn("at most 50", error.message)
        self.assertEqual(after, 10)

    def test_misuse(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> List[Any]:
            return [
                attempt(lambda: comm.send(1, b"x")),
                attempt(lambda: comm.recv(0, b"read-only")),
                attempt(lambda: comm.get(0, bytearray(4), b"short")),
                attempt(lambda: comm.put(0, b"abcd", bytes(64))),
                attempt(lambda: comm.signal(0, 64)),
                attempt(lambda: comm.put(0, b"abcd", bytes(64), offset=-1)),
            ]

        for error in ranks(1, body)[0]:
            self.assertIsInstance(error, gradsync.InvalidError)


class Access(unittest.TestCase):
    def test_put_get_signal(self) -> None:
        """puts are there when their signal is"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            n, rank = comm.size, comm.rank
            memory = ctx.alloc(1000 * n)
            keys = comm.keys(memory)
            for step in range(1, 4):
                for r in range(n):
                    if r % 2:
                        comm.put(r, bytes([step * 16 + rank]) * 1000, keys[r], offset=1000 * rank)
                        comm.signal(r, slot=5)
                    else:
                        request = comm.put_post(r, bytes([step * 16 + rank]) * 1000, keys[r], offset=1000 * rank)
                        signal = comm.signal_post(r, slot=5)
                        request.wait()
                        signal.wait()
                for r in range(n):
                    comm.wait_signal(r, slot=5, value=step)
                    assert comm.signal_count(r, 5) >= step
                want = b"".join(bytes([step * 16 + r]) * 1000 for r in range(n))
                assert bytes(memory.view()) == want
                comm.barrier()
                for r in range(n):
                    assert comm.get(r, bytearray(1000 * n), keys[r]) == want
                    assert comm.get_post(r, bytearray(10), keys[r], offset=1000).wait() == want[1000:1010]
                comm.barrier()

        ranks(3, body)

    def test_beyond(self) -> None:
        """an access beyond the memory is refused with both lengths, and so is a damaged key"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> List[Any]:
            memory = ctx.alloc(100)
            key = comm.keys(memory)[1 - comm.rank]
            damaged = bytes([key[0] ^ 1]) + key[1:]
            errors = [
                attempt(lambda: comm.put(1 - comm.rank, bytes(51), key, offset=50)),
                attempt(lambda: comm.put(1 - comm.rank, bytes(5), damaged)),
            ]
            comm.barrier()
            assert bytes(memory.view()) == bytes(100)
            return errors

        for beyond, damaged in ranks(2, body):
            self.assertIn("beyond the 100 bytes", beyond.message)
            self.assertIsInstance(damaged, gradsync.InvalidError)


if __name__ == "__main__":
    unittest.main()
