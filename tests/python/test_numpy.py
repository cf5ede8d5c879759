# SPDX-License-Identifier: Apache-2.0
"""numpy arrays, as most callers have them."""
from __future__ import annotations

import unittest
from typing import Any

import gradsync
from gradsync import DType, InvalidError
from gradsync.buffers import look
from harness import encode, ranks

try:
    import numpy as np
except ImportError:
    raise unittest.SkipTest("this Python has no numpy") from None

NAMES = {
    DType.F32: "float32",
    DType.F64: "float64",
    DType.F16: "float16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.I32: "int32",
    DType.U32: "uint32",
    DType.I64: "int64",
    DType.U64: "uint64",
}


class _Named:
    """An array whose opaque element type has a name, as ml_dtypes makes them."""

    class dtype:
        name = "bfloat16"

    def __init__(self, raw: Any) -> None:
        self.__array_interface__ = dict(raw.__array_interface__, typestr="<V2")


class Arrays(unittest.TestCase):
    def test_element_types(self) -> None:
        for dtype, name in NAMES.items():
            array = np.zeros((2, 3), name)
            found = look(array)
            self.assertEqual((found.dtype, found.count, found.address), (dtype, 6, array.ctypes.data))
            self.assertEqual(look(array, array.dtype).dtype, dtype)
            self.assertEqual(look(array, array.dtype.type).dtype, dtype)
            view = look(memoryview(array))
            self.assertEqual((view.dtype, view.count), (dtype, 6))

    def test_scalars_and_empty_arrays(self) -> None:
        self.assertEqual(look(np.array(1.0)).count, 1)
        self.assertTrue(look(np.float32(1.0)).readonly)
        self.assertEqual(look(np.zeros((0, 5), "f4")).count, 0)
        self.assertEqual(look(np.zeros((5, 0), "f4")[::2]).count, 0)

    def test_refusals(self) -> None:
        array = np.zeros((4, 4), "f4")
        for view in (array[:, 1], array[::2], array.T, np.asfortranarray(array)):
            with self.assertRaisesRegex(InvalidError, "contiguous"):
                look(view)
        for dtype in ("c8", "i2", "?", "f4,i4", "M8[s]"):
            with self.assertRaisesRegex(InvalidError, "element type"):
                look(np.zeros(4, dtype))
        with self.assertRaisesRegex(InvalidError, "byte order"):
            look(np.zeros(4, ">f4"))
        array.flags.writeable = False
        self.assertTrue(look(array).readonly)
        with self.assertRaisesRegex(InvalidError, "does not convert"):
            look(np.zeros(4, "f4"), "bf16")

    def test_contiguous_slices(self) -> None:
        array = np.zeros((4, 4), "f4")
        self.assertEqual(look(array[1:3]).address, array.ctypes.data + 16)
        self.assertEqual(look(array[2]).count, 4)

    def test_named_opaque_types(self) -> None:
        raw = np.zeros(3, "u2")
        found = look(_Named(raw))
        self.assertEqual((found.dtype, found.count, found.address), (DType.BF16, 3, raw.ctypes.data))

    def test_dlpack(self) -> None:
        class Other:
            """numpy's producer without numpy's other protocols"""

            def __init__(self, array: Any) -> None:
                self.array = array

            def __dlpack__(self) -> Any:
                return self.array.__dlpack__()

            def __dlpack_device__(self) -> Any:
                return self.array.__dlpack_device__()

        if not hasattr(np.zeros(1), "__dlpack__"):
            self.skipTest("this numpy has no DLPack")
        array = np.arange(6, dtype="f4").reshape(2, 3)
        found = look(Other(array))
        self.assertEqual((found.dtype, found.count, found.address), (DType.F32, 6, array.ctypes.data))
        with self.assertRaisesRegex(InvalidError, "contiguous"):
            look(Other(array.T))
        with gradsync.Context() as ctx, ctx.comm() as comm:
            comm.all_reduce(Other(array), op="premul_sum", prescale=2.0)
        self.assertEqual(array.tolist(), [[0, 2, 4], [6, 8, 10]])

    def test_all_reduce(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            for memory in ("numpy", "library"):
                for shape in ((), (1,), (3, 5, 7), (100003,)):
                    array = np.empty(shape, "f4") if memory == "numpy" else ctx.alloc_array(shape, "f32")
                    base = np.asarray(np.arange(array.size) % 100, "f4").reshape(shape)
                    array[...] = base * (comm.rank + 1)
                    self.assertIs(comm.all_reduce(array), array)
                    np.testing.assert_array_equal(array, base * 10)
                    out = np.empty_like(array)
                    self.assertIs(comm.all_reduce(base, out, "avg"), out)
                    np.testing.assert_array_equal(out, base)

        ranks(4, body)

    def test_other_collectives(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> None:
            n, rank = comm.size, comm.rank
            mine = np.arange(12, dtype="i8") + 100 * rank
            total = n * np.arange(12) + 100 * sum(range(n))
            part = np.empty(4, "i8")
            comm.reduce_scatter(mine, part)
            np.testing.assert_array_equal(part, total[4 * rank : 4 * rank + 4])
            whole = np.empty((n, 12), "i8")
            comm.all_gather(mine, whole)
            np.testing.assert_array_equal(whole, np.arange(12) + 100 * np.arange(n)[:, None])
            first = whole[0]
            self.assertIs(comm.reduce(mine, first, root=1), first if rank == 1 else None)
            np.testing.assert_array_equal(whole[0], total if rank == 1 else np.arange(12))
            comm.broadcast(whole[0], root=1)
            np.testing.assert_array_equal(whole[0], total)

        ranks(3, body)

    def test_bf16_rounds_once(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            # 1 + 3 * 2^-9 in f32; rounding after every addition would leave 1
            array = np.frombuffer(encode(DType.BF16, [1.0 if comm.rank == 0 else 2.0**-9] * 4), "u2").copy()
            comm.all_reduce(array, dtype="bf16", ordered=True)
            return array.tolist()

        want = np.frombuffer(encode(DType.BF16, [1.0 + 2.0**-7]), "u2")[0]
        self.assertEqual(ranks(4, body), [[want] * 4] * 4)


class LibraryMemory(unittest.TestCase):
    def test_alloc_array(self) -> None:
        with gradsync.Context() as ctx:
            for dtype, name in list(NAMES.items()) + [(DType.BF16, "uint16")]:
                array = ctx.alloc_array((3, 4), dtype)
                self.assertEqual((array.shape, array.dtype, array.any()), ((3, 4), np.dtype(name), False))
                array[...] = 1
                self.assertEqual(int(array.sum()), 12)
            self.assertEqual(ctx.alloc_array(0, "f32").shape, (0,))

    def test_views_of_a_memory(self) -> None:
        with gradsync.Context() as ctx, ctx.alloc(64) as memory:
            array = memory.numpy("f32")
            self.assertEqual(array.shape, (16,))
            memory.view("f32")[3] = 2.5
            self.assertEqual(array[3], 2.5)
            self.assertEqual(memory.numpy("i32", (2, 2)).shape, (2, 2))
            self.assertEqual(np.asarray(memory).shape, (64,))
            np.asarray(memory)[:] = 0
            self.assertFalse(array.any())
            with self.assertRaisesRegex(InvalidError, "needs 128 bytes"):
                memory.numpy("f64", 16)

    def test_register(self) -> None:
        def body(ctx: gradsync.Context, comm: gradsync.Comm) -> Any:
            array = np.full(1 << 20, comm.rank, "f4")  # large: a mapping of its own
            with ctx.register(array, remap=True) as memory:
                self.assertEqual(memory.address, array.ctypes.data)
                self.assertEqual(memory.info().kind, gradsync.MemKind.REMAPPED)
                self.assertTrue((array == comm.rank).all())
                comm.all_reduce(array)
                comm.barrier()
            return float(array.min()), float(array.max())

        self.assertEqual(ranks(3, body), [(3.0, 3.0)] * 3)


if __name__ == "__main__":
    unittest.main()
