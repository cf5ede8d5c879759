# SPDX-License-Identifier: Apache-2.0
"""Posted collectives: test, wait, descriptors, asyncio, and dropping them."""
from __future__ import annotations

import asyncio
import gc
import select
import unittest
from typing import Any, List

import gradsync
from gradsync import DType
from harness import Exchange, decode, encode, ranks, threads

N = 3


def one(rank: int, count: int = 1000) -> bytearray:
    return encode(DType.F32, [rank + 1.0] * count)


SUM = [6.0] * 1000


class Requests(unittest.TestCase):
    def test_wait_and_test(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            data = one(comm.rank)
            request = comm.all_reduce_post(data, dtype="f32")
            self.assertIs(request.wait(), data)
            self.assertEqual(decode(DType.F32, data), SUM)
            self.assertTrue(request.test() and request.done)  # the same answer again
            self.assertIs(request.wait(), data)
            self.assertIs(request.result, data)
            report = request.report()
            self.assertEqual((report.seq, report.nbytes), (1, 4000))
            request.close()
            request.close()
            with self.assertRaises(gradsync.InvalidError):
                request.wait()

        ranks(N, body)

    def test_polling(self) -> None:
        """progress by test() alone, with nobody else to make it"""
        exchange = Exchange(N)

        def body(rank: int) -> List[float]:
            with gradsync.Context(progress="manual", timeout=60) as ctx, ctx.comm(rank, N, exchange.of(rank)) as comm:
                data = one(rank)
                request = comm.all_reduce_post(data, dtype="f32")
                while not request.test():
                    pass
                comm.barrier()
                return decode(DType.F32, data)

        self.assertEqual(threads(N, body), [SUM] * N)

    def test_many_at_once(self) -> None:
        """waited for in another order than posted"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            data = [one(comm.rank, 10 * (i + 1)) for i in range(20)]
            requests = [comm.all_reduce_post(d, dtype="f32") for d in data]
            for request in reversed(requests[10:]):
                request.wait()
            gradsync.wait_all(requests)
            for d in data:
                self.assertEqual(set(decode(DType.F32, d)), {6.0})
            self.assertEqual([request.report().seq for request in requests], list(range(1, 21)))

        ranks(N, body)

    def test_blocking_calls_between(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            first, second = one(comm.rank), one(comm.rank)
            request = comm.all_reduce_post(first, dtype="f32")
            comm.all_reduce(second, dtype="f32")
            self.assertEqual(decode(DType.F32, second), SUM)
            request.wait()
            self.assertEqual(decode(DType.F32, first), SUM)

        ranks(N, body)

    def test_descriptor(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            data = one(comm.rank)
            with comm.all_reduce_post(data, dtype="f32") as request:
                poller = select.poll()
                poller.register(request, select.POLLIN)
                self.assertEqual(len(poller.poll(60000)), 1)
                self.assertTrue(request.test())

        ranks(N, body)

    def test_no_descriptor_without_a_thread(self) -> None:
        with gradsync.Context(progress="manual") as ctx, ctx.comm() as comm:
            request = comm.barrier_post()
            with self.assertRaises(gradsync.UnsupportedError):
                request.fileno()
            request.wait()

    def test_asyncio(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            async def main() -> None:
                data = [one(comm.rank) for _ in range(8)]
                requests = [comm.all_reduce_post(d, dtype="f32") for d in data]
                results = await asyncio.gather(*requests)
                for d, result in zip(data, results):
                    self.assertIs(result, d)
                    self.assertEqual(decode(DType.F32, d), SUM)
                # several tasks may wait for one request, and it may be done already
                request = comm.barrier_post()
                await asyncio.gather(asyncio.ensure_future(_await(request)), _await(request))
                await request

            asyncio.run(main())

        ranks(N, body)

    def test_asyncio_goes_on_meanwhile(self) -> None:
        """the event loop runs while a request waits for a late rank"""
        exchange = Exchange(2)

        def body(rank: int) -> int:
            async def main(comm: gradsync.Comm) -> int:
                turns = 0
                request = comm.barrier_post() if rank == 0 else None
                for _ in range(5):
                    await asyncio.sleep(0)
                    turns += 1
                await (request or comm.barrier_post())
                return turns

            with gradsync.Context(timeout=60) as ctx, ctx.comm(rank, 2, exchange.of(rank)) as comm:
                return asyncio.run(main(comm))

        self.assertEqual(threads(2, body), [5, 5])

    def test_asyncio_cancelled(self) -> None:
        """giving up waiting leaves the collective alone"""
        exchange = Exchange(2)

        def body(rank: int) -> List[float]:
            with gradsync.Context(timeout=60) as ctx, ctx.comm(rank, 2, exchange.of(rank)) as comm:
                data = one(rank, 4)
                if rank == 0:

                    async def main() -> None:
                        task = asyncio.ensure_future(_await(comm.all_reduce_post(data, dtype="f32")))
                        await asyncio.sleep(0)
                        task.cancel()
                        with self.assertRaises(asyncio.CancelledError):
                            await task

                    asyncio.run(main())
                exchange.of(rank)(b"")
                if rank == 1:
                    comm.all_reduce(data, dtype="f32")
                comm.barrier()
                return decode(DType.F32, data)

        self.assertEqual(threads(2, body), [[3.0] * 4] * 2)

    def test_dropped_request(self) -> None:
        """its buffers live until it is done"""

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for _ in range(50):
                comm.all_reduce_post(one(comm.rank, 5000), dtype="f32")
            gc.collect()
            data = one(comm.rank)
            comm.all_reduce(data, dtype="f32")
            self.assertEqual(decode(DType.F32, data), SUM)
            comm.barrier_post().wait()
            self.assertLessEqual(len(comm._handle.pending), 50)

        ranks(N, body)

    def test_buffers_are_held_while_in_progress(self) -> None:
        exchange = Exchange(2)

        def body(rank: int) -> None:
            with gradsync.Context(timeout=60) as ctx, ctx.comm(rank, 2, exchange.of(rank)) as comm:
                data = one(rank, 4)
                if rank == 0:
                    request = comm.all_reduce_post(data, dtype="f32")
                    with self.assertRaises(BufferError):  # a bytearray in use cannot be resized
                        data.extend(b"more")
                    exchange.of(rank)(b"")
                    request.wait()
                    data.extend(b"more")
                else:
                    exchange.of(rank)(b"")
                    comm.all_reduce(data, dtype="f32")
                comm.barrier()

        threads(2, body)

    def test_close_ends_requests(self) -> None:
        """requests in progress end as broken, and their reports can still be asked for"""
        exchange = Exchange(2)

        def body(rank: int) -> Any:
            with gradsync.Context(timeout=60) as ctx:
                comm = ctx.comm(rank, 2, exchange.of(rank))
                if rank == 0:
                    request = comm.all_reduce_post(one(rank), dtype="f32")
                    comm.close()
                    with self.assertRaises(gradsync.BrokenError):
                        request.wait()
                    self.assertTrue(request.done)
                exchange.of(rank)(b"")
                comm.close()
                comm.close()
                self.assertTrue(comm.closed)
                with self.assertRaisesRegex(gradsync.InvalidError, "closed"):
                    comm.barrier()

        threads(2, body)


async def _await(request: gradsync.Request) -> Any:
    return await request


if __name__ == "__main__":
    unittest.main()
