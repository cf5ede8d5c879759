# SPDX-License-Identifier: Apache-2.0
"""What the binding accepts as memory, what it refuses, and that it never copies."""
from __future__ import annotations

import array
import ctypes
import mmap
import unittest
from typing import Any, List, Optional, Tuple

import gradsync
from gradsync import DType, InvalidError, UnsupportedError
from gradsync.buffers import look
from harness import encode


def address_of(array: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(array))


class BufferProtocol(unittest.TestCase):
    def test_element_types(self) -> None:
        """struct letters of array.array"""
        expected = {"f": DType.F32, "d": DType.F64, "b": DType.I8, "B": DType.U8, "i": DType.I32, "I": DType.U32}
        expected.update({"q": DType.I64, "Q": DType.U64, "l": DType.I64, "L": DType.U64})
        if ctypes.sizeof(ctypes.c_long) == 4:
            expected.update({"l": DType.I32, "L": DType.U32})
        for letter, dtype in expected.items():
            data = array.array(letter, [1, 2, 3])
            found = look(data)
            self.assertEqual((found.dtype, found.count), (dtype, 3), letter)
            self.assertEqual(found.address, data.buffer_info()[0], letter)
            self.assertFalse(found.readonly)

    def test_ctypes_arrays(self) -> None:
        data = (ctypes.c_float * 5)()
        found = look(data)
        self.assertEqual((found.dtype, found.count, found.address), (DType.F32, 5, ctypes.addressof(data)))

    def test_mmap(self) -> None:
        with mmap.mmap(-1, 4096) as data:
            found = look(data, "f64")
            self.assertEqual((found.count, found.readonly), (512, False))
            with self.assertRaises(BufferError):  # in use: cannot be unmapped below the library
                data.close()
            del found

    def test_raw_bytes_take_a_type(self) -> None:
        data = bytearray(16)
        for dtype in DType:
            self.assertEqual(look(data, dtype).count, 16 // dtype.nbytes)
        self.assertEqual(look(data).dtype, DType.U8)

    def test_sixteen_bit_integers_take_a_type(self) -> None:
        data = array.array("H", [1, 2, 3])
        for name in ("bf16", "bfloat16", "f16", DType.BF16):
            self.assertEqual(look(data, name).count, 3)
        with self.assertRaisesRegex(InvalidError, "dtype="):
            look(data)

    def test_typed_memory_is_not_reinterpreted(self) -> None:
        for data, dtype in ((array.array("f", [1.0]), "bf16"), (array.array("i", [1]), "f32"), (array.array("d", [1]), "u8")):
            with self.assertRaisesRegex(InvalidError, "does not convert"):
                look(data, dtype)

    def test_part_of_an_element(self) -> None:
        with self.assertRaisesRegex(InvalidError, "no whole number"):
            look(bytearray(7), "f32")

    def test_unknown_types(self) -> None:
        with self.assertRaisesRegex(InvalidError, "one of f32"):
            look(bytearray(8), "complex64")
        with self.assertRaises(InvalidError):
            look(array.array("u", "abc"))

    def test_no_memory(self) -> None:
        for thing in (None, 5, "text", [1.0, 2.0], object()):
            with self.assertRaisesRegex(InvalidError, "no memory"):
                look(thing)

    def test_read_only_is_seen(self) -> None:
        self.assertTrue(look(b"1234", "f32").readonly)
        self.assertTrue(look(memoryview(bytearray(4)).toreadonly(), "f32").readonly)

    def test_read_only_is_refused_for_results(self) -> None:
        with gradsync.Context() as ctx, ctx.comm() as comm:
            for call in (
                lambda: comm.all_reduce(b"1234", dtype="f32"),
                lambda: comm.all_reduce(bytearray(4), b"1234", dtype="f32"),
                lambda: comm.reduce_scatter(b"1234", dtype="f32"),
                lambda: comm.all_gather(bytearray(4), bytes(4)),
                lambda: comm.broadcast(b"1234"),
                lambda: comm.reduce(b"1234", dtype="f32"),
                lambda: comm.all_reduce_post(b"1234", dtype="f32"),
            ):
                with self.assertRaisesRegex(InvalidError, "read-only"):
                    call()

    def test_not_contiguous(self) -> None:
        with self.assertRaisesRegex(InvalidError, "contiguous"):
            look(memoryview(bytearray(8))[::2])

    def test_empty(self) -> None:
        self.assertEqual(look(bytearray(), "f32").count, 0)

    def test_other_byte_order(self) -> None:
        class Big(ctypes.BigEndianStructure):
            _fields_ = [("x", ctypes.c_int32)]

        with self.assertRaises(InvalidError):
            look((Big * 2)())

    def test_export_is_held_and_given_back(self) -> None:
        data = bytearray(8)
        found = look(data, "f32")
        with self.assertRaises(BufferError):
            data.append(1)
        del found
        data.append(1)

    def test_counts_must_agree(self) -> None:
        with gradsync.Context() as ctx, ctx.comm() as comm:
            with self.assertRaisesRegex(InvalidError, "send has 2 elements and recv 3"):
                comm.all_reduce(bytearray(8), bytearray(12), dtype="f32")
            with self.assertRaisesRegex(InvalidError, "must agree"):
                comm.all_reduce(array.array("f", [1.0]), array.array("i", [1]))


class _Interface:
    """An object with an array interface of either kind."""

    def __init__(self, name: str, address: int, shape: Tuple[int, ...], typestr: str, strides: Optional[Tuple[int, ...]]) -> None:
        value = {"data": (address, False), "shape": shape, "typestr": typestr, "strides": strides, "version": 3}
        setattr(self, name, value)


class _Device:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


class _Tensor:
    """What the binding uses of torch.Tensor."""

    def __init__(self, data: Any, dtype: str, itemsize: int, device: str = "cpu", contiguous: bool = True) -> None:
        self.data = data
        self.dtype = _Device("torch." + dtype)
        self.device = _Device(device)
        self.itemsize = itemsize
        self.contiguous = contiguous

    def data_ptr(self) -> int:
        return address_of(self.data)

    def numel(self) -> int:
        return len(self.data) // self.itemsize

    def element_size(self) -> int:
        return self.itemsize

    def is_contiguous(self) -> bool:
        return self.contiguous

    def is_neg(self) -> bool:
        return False

    def is_conj(self) -> bool:
        return False


_Tensor.__module__ = "torch"


class Protocols(unittest.TestCase):
    def test_array_interface(self) -> None:
        data = bytearray(24)
        for strides in (None, (12, 4)):
            found = look(_Interface("__array_interface__", address_of(data), (2, 3), "<f4", strides))
            self.assertEqual((found.dtype, found.count, found.address), (DType.F32, 6, address_of(data)))
        with self.assertRaisesRegex(InvalidError, "contiguous"):
            look(_Interface("__array_interface__", address_of(data), (3, 2), "<f4", (4, 12)))
        with self.assertRaisesRegex(InvalidError, "byte order"):
            look(_Interface("__array_interface__", address_of(data), (6,), ">f4", None))

    def test_cuda_array_interface(self) -> None:
        thing = _Interface("__cuda_array_interface__", 0x7F0000001000, (4,), "<f4", None)
        with self.assertRaisesRegex(UnsupportedError, "0x7f0000001000 is on a CUDA device.*no CUDA module"):
            look(thing)

    def test_torch_tensors(self) -> None:
        data = bytearray(16)
        for name, size, dtype in (("float32", 4, DType.F32), ("bfloat16", 2, DType.BF16), ("int64", 8, DType.I64)):
            found = look(_Tensor(data, name, size))
            self.assertEqual((found.dtype, found.count, found.address), (dtype, 16 // size, address_of(data)))
        with self.assertRaisesRegex(InvalidError, "contiguous"):
            look(_Tensor(data, "float32", 4, contiguous=False))
        with self.assertRaisesRegex(UnsupportedError, "cuda:1"):
            look(_Tensor(data, "float32", 4, device="cuda:1"))
        self.assertEqual(look(_Tensor(data, "int16", 2), "bf16").count, 8)

    def test_type_names(self) -> None:
        class Scalar:
            name = "float32"

        for like in ("float32", "torch.float32", "FLOAT32", "f32", Scalar(), DType.F32, _Device("torch.float32")):
            self.assertEqual(look(bytearray(4), like).dtype, DType.F32)


class DLPack(unittest.TestCase):
    """A producer of our own, so that layouts and devices of every kind can be made."""

    def test_plain(self) -> None:
        made = Producer([1.0, 2.0, 3.0])
        found = look(made)
        self.assertEqual((found.dtype, found.count, found.address), (DType.F32, 3, made.address))
        self.assertEqual(made.deleted, 0)
        del found
        self.assertEqual(made.deleted, 1)

    def test_bf16(self) -> None:
        self.assertEqual(look(Producer([1.0] * 4, code=4, bits=16)).dtype, DType.BF16)

    def test_offset_and_strides(self) -> None:
        made = Producer([1.0] * 6, shape=(2, 3), strides=(3, 1))
        self.assertEqual(look(made).count, 6)
        made = Producer([1.0] * 6, shape=(2,), offset=8)
        self.assertEqual(look(made).address, made.address + 8)
        with self.assertRaisesRegex(InvalidError, "contiguous"):
            look(Producer([1.0] * 6, shape=(3, 2), strides=(1, 3)))

    def test_devices(self) -> None:
        with self.assertRaisesRegex(UnsupportedError, "cuda:1.*no CUDA module"):
            look(Producer([1.0], device=2, index=1))
        self.assertEqual(look(Producer([1.0], device=3)).count, 1)  # pinned host memory

    def test_vectors(self) -> None:
        with self.assertRaises(InvalidError):
            look(Producer([1.0] * 4, lanes=4))

    def test_all_reduce(self) -> None:
        made = Producer([1.0, 2.0])
        with gradsync.Context() as ctx, ctx.comm() as comm:
            self.assertIs(comm.all_reduce(made, op="premul_sum", prescale=3.0), made)
        self.assertEqual(list(made.data), [3.0, 6.0])
        self.assertEqual(made.deleted, 1)


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Managed._fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_NAME = b"dltensor"


class Producer:
    def __init__(
        self,
        values: List[float],
        code: int = 2,
        bits: int = 32,
        lanes: int = 1,
        shape: Optional[Tuple[int, ...]] = None,
        strides: Optional[Tuple[int, ...]] = None,
        offset: int = 0,
        device: int = 1,
        index: int = 0,
    ) -> None:
        self.data = (ctypes.c_float * len(values))(*values)
        self.address = ctypes.addressof(self.data)
        self.device = (device, index)
        self.deleted = 0
        shape = (len(values),) if shape is None else shape
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        tensor = _DLTensor(
            data=self.address,
            device_type=device,
            device_id=index,
            ndim=len(shape),
            code=code,
            bits=bits,
            lanes=lanes,
            shape=self._shape,
            strides=self._strides,
            byte_offset=offset,
        )
        self._deleter = _Deleter(self._delete)
        self._managed = _Managed(tensor=tensor, context=None, deleter=self._deleter)
        self._destructor = _Destructor(self._destroy)

    def _delete(self, managed: int) -> None:
        self.deleted += 1

    def _destroy(self, capsule: int) -> None:
        # as producers do: nobody took the tensor, so its deleter is ours to call
        self._managed.deleter(ctypes.addressof(self._managed))

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: Any = None) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
        new.restype = ctypes.py_object
        return new(ctypes.addressof(self._managed), _NAME, self._destructor)


class Retyping(unittest.TestCase):
    def test_bf16_in_raw_integers(self) -> None:
        data = array.array("H", encode(DType.BF16, [1.0, 2.0, -4.0]))
        with gradsync.Context() as ctx, ctx.comm() as comm:
            comm.all_reduce(data, op="premul_sum", prescale=2.0, dtype="bf16")
        self.assertEqual(data.tobytes(), bytes(encode(DType.BF16, [2.0, 4.0, -8.0])))


if __name__ == "__main__":
    unittest.main()
