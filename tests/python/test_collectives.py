# SPDX-License-Identifier: Apache-2.0
"""Every collective, element type and reduction, in place and out of place, blocking and posted."""
from __future__ import annotations

import math
import unittest
from typing import Any, Callable, List, Sequence

import gradsync
from gradsync import DType, Op
from harness import decode, encode, ranks

N = 3
COUNTS = (0, 1, 7, 1000)


def value(rank: int, i: int) -> int:
    """What rank contributes as element i: sums and products are exact in every type."""
    return (i * 5 + rank * 3) % 4 + 1


def contribution(rank: int, count: int) -> List[float]:
    return [float(value(rank, i)) for i in range(count)]


def reduction(op: Op, dtype: DType, count: int) -> List[float]:
    result = []
    for i in range(count):
        column = [float(value(rank, i)) for rank in range(N)]
        if op is Op.PROD:
            result.append(float(math.prod(column)))
        elif op is Op.MIN:
            result.append(min(column))
        elif op is Op.MAX:
            result.append(max(column))
        else:
            result.append(sum(column))
    return result


OPS = (Op.SUM, Op.PROD, Op.MIN, Op.MAX)


class Collectives(unittest.TestCase):
    """One test a collective and type; each does all counts and forms."""

    def both(self, comm: gradsync.Comm, name: str, make: Callable[[], Sequence[Any]], want: Any, got: Any, **kw: Any) -> None:
        """Blocking and posted, each with fresh buffers: got(buffers) must be want."""
        buffers = make()
        result = getattr(comm, name)(*buffers, **kw)
        self.assertEqual(got(buffers), want, "%s %r" % (name, kw))
        self.assertTrue(result is None or any(result is buffer for buffer in buffers))
        buffers = make()
        with getattr(comm, name + "_post")(*buffers, **kw) as request:
            self.assertIs(request.wait() is None, result is None)
        self.assertEqual(got(buffers), want, "%s_post %r" % (name, kw))

    def all_reduce(self, dtype: DType) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for count in COUNTS:
                mine = encode(dtype, contribution(comm.rank, count))
                for op in OPS:
                    want = reduction(op, dtype, count)
                    self.both(
                        comm,
                        "all_reduce",
                        lambda: [bytearray(mine)],
                        want,
                        lambda b: decode(dtype, b[0]),
                        op=op,
                        dtype=dtype,
                    )
                    self.both(
                        comm,
                        "all_reduce",
                        lambda: [bytes(mine), bytearray(len(mine))],
                        (want, bytes(mine)),
                        lambda b: (decode(dtype, b[1]), b[0]),
                        op=op.name.lower(),
                        dtype=dtype.short,
                    )

        ranks(N, body)

    def reduce_scatter(self, dtype: DType) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for count in COUNTS:
                mine = encode(dtype, contribution(comm.rank, count * N))
                for op in OPS:
                    part = slice(count * comm.rank, count * (comm.rank + 1))
                    want = reduction(op, dtype, count * N)[part]
                    self.both(
                        comm,
                        "reduce_scatter",
                        lambda: [bytearray(mine)],
                        want,
                        lambda b: decode(dtype, b[0])[part],
                        op=op,
                        dtype=dtype,
                    )
                    self.both(
                        comm,
                        "reduce_scatter",
                        lambda: [bytes(mine), bytearray(len(mine) // N)],
                        (want, bytes(mine)),
                        lambda b: (decode(dtype, b[1]), b[0]),
                        op=op,
                        dtype=dtype,
                    )

        ranks(N, body)

    def all_gather(self, dtype: DType) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for count in COUNTS:
                mine = encode(dtype, contribution(comm.rank, count))
                want = [v for rank in range(N) for v in contribution(rank, count)]
                whole = bytearray(len(mine) * N)
                whole[len(mine) * comm.rank : len(mine) * (comm.rank + 1)] = mine
                self.both(
                    comm, "all_gather", lambda: [bytearray(whole)], want, lambda b: decode(dtype, b[0]), dtype=dtype
                )
                self.both(
                    comm,
                    "all_gather",
                    lambda: [bytes(mine), bytearray(len(mine) * N)],
                    want,
                    lambda b: decode(dtype, b[1]),
                    dtype=dtype,
                )

        ranks(N, body)

    def broadcast(self, dtype: DType) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for count in COUNTS:
                mine = encode(dtype, contribution(comm.rank, count))
                for root in range(N):
                    want = contribution(root, count)
                    self.both(
                        comm,
                        "broadcast",
                        lambda: [bytearray(mine)],
                        want,
                        lambda b: decode(dtype, b[0]),
                        root=root,
                        dtype=dtype,
                    )
                    self.both(
                        comm,
                        "broadcast",
                        lambda: [bytes(mine) if comm.rank == root else None, bytearray(len(mine))],
                        want,
                        lambda b: decode(dtype, b[1]),
                        root=root,
                        dtype=dtype,
                    )

        ranks(N, body)

    def reduce(self, dtype: DType) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for count in COUNTS:
                mine = encode(dtype, contribution(comm.rank, count))
                for root, op in enumerate(OPS[:N]):
                    here = comm.rank == root
                    want = reduction(op, dtype, count) if here else contribution(comm.rank, count)
                    self.both(
                        comm,
                        "reduce",
                        lambda: [bytearray(mine)],
                        want,
                        lambda b: decode(dtype, b[0]),
                        op=op,
                        root=root,
                        dtype=dtype,
                    )
                    want = reduction(op, dtype, count) if here else []
                    self.both(
                        comm,
                        "reduce",
                        lambda: [bytes(mine), bytearray(len(mine)) if here else None],
                        want,
                        lambda b: decode(dtype, b[1] or b""),
                        op=op,
                        root=root,
                        dtype=dtype,
                    )

        ranks(N, body)


def _add_tests() -> None:
    for name in ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce"):
        for dtype in DType:

            def test(self: Collectives, name: str = name, dtype: DType = dtype) -> None:
                getattr(self, name)(dtype)

            setattr(Collectives, "test_%s_%s" % (name, dtype.short), test)


_add_tests()


class Scaling(unittest.TestCase):
    def reduced(self, dtype: DType, op: str, **kw: Any) -> List[float]:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> List[float]:
            data = encode(dtype, [4.0 * (comm.rank + 1)] * 5)
            comm.all_reduce(data, op=op, dtype=dtype, **{k: v[comm.rank] for k, v in kw.items()})
            return decode(dtype, data)

        results = ranks(N, body)
        self.assertEqual(results[1:], results[:-1])
        return results[0]

    def test_average(self) -> None:
        for dtype in DType:
            self.assertEqual(self.reduced(dtype, "avg"), [8.0] * 5, dtype)

    def test_premultiplied_sum(self) -> None:
        for dtype in (DType.F32, DType.F64, DType.F16, DType.BF16):
            self.assertEqual(self.reduced(dtype, "premul_sum", prescale=[0.5, 0.25, 2.0]), [28.0] * 5, dtype)

    def test_prescale(self) -> None:
        for dtype in (DType.F32, DType.F64, DType.F16, DType.BF16):
            self.assertEqual(self.reduced(dtype, "sum", prescale=[0.5] * N), [12.0] * 5, dtype)
            self.assertEqual(self.reduced(dtype, "avg", prescale=[0.5] * N), [4.0] * 5, dtype)

    def test_ordered_is_accepted_and_exact(self) -> None:
        self.assertEqual(self.reduced(DType.F32, "sum", ordered=[True] * N), [24.0] * 5)


class Groups(unittest.TestCase):
    def test_barrier(self) -> None:
        """no rank leaves it before the last one came"""
        came = [0] * N

        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for turn in range(1, 20):
                came[comm.rank] = turn
                comm.barrier() if turn % 2 else comm.barrier_post().wait()
                self.assertGreaterEqual(min(came), turn)
                comm.barrier()

        ranks(N, body)

    def test_one_rank(self) -> None:
        with gradsync.Context() as ctx, ctx.comm() as comm:
            self.assertEqual((comm.rank, comm.size), (0, 1))
            data = encode(DType.F32, [1.0, 2.0])
            comm.all_reduce(data, dtype="f32")
            comm.barrier()
            self.assertEqual(decode(DType.F32, data), [1.0, 2.0])

    def test_split(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            with comm.split(comm.rank % 2, key=-comm.rank) as half:  # type: ignore[union-attr]
                data = encode(DType.I32, [comm.rank])
                half.all_reduce(data, dtype="i32")
                return half.rank, half.size, decode(DType.I32, data)[0]

        self.assertEqual(ranks(4, body), [(1, 2, 2.0), (1, 2, 4.0), (0, 2, 2.0), (0, 2, 4.0)])

    def test_split_without_a_color(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            part = comm.split(None if comm.rank == 0 else 0)
            if part is None:
                return None
            with part:
                return part.size

        self.assertEqual(ranks(N, body), [None, 2, 2])

    def test_algorithms(self) -> None:
        """each one that serves plain memory gives the same"""
        for algo in ("oneshot", "staged", "ring", "tree", "doubling", "pairwise"):

            def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
                data = encode(DType.F32, contribution(comm.rank, 500))
                comm.all_reduce(data, dtype="f32", algo=algo)
                self.assertEqual(comm.report().algo.name.lower(), algo)
                return decode(DType.F32, data)

            with self.subTest(algo):
                self.assertEqual(ranks(N, body)[0], reduction(Op.SUM, DType.F32, 500))


class Queries(unittest.TestCase):
    def test_reports_infos_counters(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for turn in range(1, 4):
                comm.all_reduce(bytearray(4000), dtype="f32")
                report = comm.report()
                self.assertEqual((report.coll, report.nbytes), (gradsync.Coll.ALL_REDUCE, 4000))
                self.assertEqual((report.result, report.seq), (gradsync.ErrorCode.OK, turn))
                self.assertNotEqual(report.algo, gradsync.Algo.AUTO)
                self.assertTrue(report.reason)
                self.assertGreater(report.measured_us, 0)
            counters = comm.counters()
            self.assertEqual((counters.operations, counters.nbytes, counters.failures), (3, 12000, 0))
            self.assertEqual(sum(counters.by_algo.values()), 3)
            info = comm.info()
            self.assertEqual((info.rank, info.size, info.local_ranks), (comm.rank, N, N))
            self.assertTrue(info.transport)
            self.assertEqual([peer.rank for peer in comm.peers()], list(range(N)))
            self.assertTrue(all(peer.same_host and peer.alive for peer in comm.peers()))
            self.assertEqual(len(comm.rails()), info.nrails)
            comm.barrier()

        ranks(N, body)

    def test_explain(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for coll in gradsync.Coll:
                self.assertTrue(comm.explain(coll, 4096).strip(), coll)
            self.assertTrue(comm.explain("all_reduce", 1 << 20, "bf16", "avg", ordered=True, mem_kind="library").strip())

        ranks(N, body)

    def test_context(self) -> None:
        with gradsync.Context() as ctx:
            info = ctx.info()
            self.assertGreaterEqual(info.cpus, 1)
            self.assertTrue(info.cpu_tier)
            self.assertIn("shm", [transport.name for transport in ctx.transports()])

    def test_version(self) -> None:
        self.assertEqual(gradsync.library_version(), gradsync.__version__)


if __name__ == "__main__":
    unittest.main()
