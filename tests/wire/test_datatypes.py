from __future__ import annotations

import numpy as np
import pytest

from triptych.errors import MalformedRequest
from triptych.wire.datatypes import DTYPES, bytes_tensor, datatype_of, pack, unpack


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_comes_back(datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(DTYPES[datatype])
    back = unpack(datatype, [2, 3], memoryview(bytes(pack(array))), name="x")
    assert (back.dtype, datatype_of(back)) == (array.dtype, datatype)
    np.testing.assert_array_equal(back, array)


def test_bytes_come_back_with_their_zeros() -> None:
    elements = [b"", b"a\0\0", "ü".encode()]
    blob = pack(bytes_tensor(elements))
    assert blob == b"\0\0\0\0" + b"\3\0\0\0a\0\0" + b"\2\0\0\0\xc3\xbc"
    assert list(unpack("BYTES", [3], memoryview(blob), name="x")) == elements


def test_numbers_are_little_endian_and_row_major() -> None:
    transposed = np.array([[1, 2], [3, 4]], ">i2").T
    assert bytes(pack(transposed)) == b"\1\0\3\0\2\0\4\0"


def test_a_tensor_is_not_copied_on_its_way_in() -> None:
    body = bytes(64)
    array = unpack("FP32", [4, 4], memoryview(body), name="x")
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert not array.flags.writeable


def test_a_tensor_at_an_odd_place_is_aligned_and_still_read_only() -> None:
    array = unpack("FP32", [2], memoryview(b" " + np.array([1, 2], "<f4").tobytes())[1:], name="x")
    assert array.tolist() == [1, 2]
    assert array.flags.aligned
    assert not array.flags.writeable


def test_a_tensor_that_is_contiguous_is_not_copied_on_its_way_out() -> None:
    array = np.ones((2, 3), np.float32)
    assert np.shares_memory(np.frombuffer(pack(array), np.uint8), array)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_empty_tensors_have_no_bytes(shape: tuple[int, ...]) -> None:
    blob = bytes(pack(np.empty(shape, np.float32)))
    assert blob == b""
    assert unpack("FP32", shape, memoryview(blob), name="x").shape == shape


@pytest.mark.parametrize(
    ("datatype", "shape", "blob", "sentence"),
    [
        ("FP32", [2], bytes(7), r"^x has 7 bytes, FP32 \[2\] takes 8$"),
        ("FP32", [2**40, 2**40], bytes(8), "x has 8 bytes"),
        ("UINT8", [], b"", r"x has 0 bytes, UINT8 \[\] takes 1"),
        ("BOOL", [2], b"\1\2", "each of its bytes is 0 or 1"),
        ("BYTES", [2], b"\1\0\0\0a", "x ends before its element 1 of 2"),
        ("BYTES", [10**12], b"", "x ends before its element 0"),
        ("BYTES", [1], b"\1\0\0", "x ends before its element 0"),
        ("BYTES", [1], b"\xff\xff\xff\xffa", "x ends in the middle of its element 0"),
        ("BYTES", [1], b"\1\0\0\0ab", "x has 1 bytes after its last element"),
    ],
)
def test_sizes_that_contradict_are_refused(datatype: str, shape: list[int], blob: bytes, sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        unpack(datatype, shape, memoryview(blob), name="x")
