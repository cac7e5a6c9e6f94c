from __future__ import annotations

import numpy as np
import pytest

from triptych.errors import InvalidValue, MalformedRequest, TooLarge
from triptych.wire import json_text
from triptych.wire.datatypes import bytes_tensor
from triptych.wire.json_text import from_list, parse_object, to_list


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "it is not valid JSON: Expecting value"),
        (b"{", "it is not valid JSON"),
        (b"\xff{}", "it is not UTF-8 text"),
        (b"\xef\xbb\xbf{}", "it is not valid JSON"),
        (b"[]", "it must be a JSON object"),
        (b'{"a": NaN}', "^NaN is not JSON"),
        (b'{"a": -Infinity}', "^-Infinity is not JSON"),
        (b'{"a": 1, "a": 2}', "names a key twice"),
        (b'{"a": {"b": 1, "b": 1}}', "names a key twice"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "a number that is too long"),
    ],
)
def test_what_is_no_plain_object_is_refused(text: bytes, sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        parse_object(memoryview(text), what="it")


def test_much_json_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_JSON_BYTES", 10)
    assert parse_object(memoryview(b'{"a": 123}'), what="it") == {"a": 123}
    with pytest.raises(TooLarge, match="it has 11 bytes of JSON, at most 10 are read"):
        parse_object(memoryview(b'{"a": 1234}'), what="it")


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
@pytest.mark.parametrize("datatype", ["INT8", "UINT64", "FP32", "FP64"])
def test_lists_may_be_flat_or_nested(datatype: str, data: list[object]) -> None:
    array = from_list(datatype, [2, 3], data, name="x")
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not array.flags.writeable


def test_the_largest_integers_are_exact() -> None:
    assert from_list("UINT64", [1], [2**64 - 1], name="x").tolist() == [2**64 - 1]


def test_texts_and_booleans() -> None:
    assert from_list("BYTES", [1, 2], [["ü", ""]], name="x").tolist() == [["ü".encode(), b""]]
    assert from_list("BOOL", [2], [True, False], name="x").tolist() == [True, False]


def test_a_single_value_has_no_dimensions() -> None:
    assert from_list("FP32", [], [1.5], name="x").shape == ()


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "sentence"),
    [
        ("FP32", [1], 1.0, "the data of x must be a list"),
        ("FP32", [2], [1.0], r"x has 1 values, its shape \[2\] takes 2"),
        ("FP32", [2, 2], [[1.0, 2.0], [3.0]], "not nested as its shape"),
        ("FP32", [2, 2], [[1.0, 2.0], 3.0], "not nested as its shape"),
        ("FP32", [2, 1], [[1.0], [[2.0]]], "its data must be numbers"),
        ("FP32", [10**9], [1.0], "x has 1 values"),
        ("FP32", [1], ["1"], "its data must be numbers"),
        ("FP32", [1], [True], "its data must be numbers"),
        ("FP32", [1], [None], "its data must be numbers"),
        ("FP32", [1], [10**400], "a number that FP32 cannot hold"),
        ("INT32", [1], [1.0], "its data must be integers"),
        ("INT32", [1], [2**31], "a number that INT32 cannot hold"),
        ("UINT64", [1], [-1], "a number that UINT64 cannot hold"),
        ("BOOL", [1], [1], "its data must be booleans"),
        ("BYTES", [1], [1], "its data must be strings"),
        ("BYTES", [1], ["\ud800"], "a string that is not valid Unicode"),
        ("FP16", [1], [1.0], "FP16, which has no JSON form"),
    ],
)
def test_data_that_is_no_such_tensor_is_refused(datatype: str, shape: list[int], data: object, sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        from_list(datatype, shape, data, name="x")


def test_tensors_become_flat_lists() -> None:
    assert to_list(np.array([[1, 2], [3, 4]], np.uint8), name="x") == [1, 2, 3, 4]
    assert to_list(np.array([0.1], np.float32), name="x") == [float(np.float32(0.1))]
    assert to_list(bytes_tensor(["ü".encode()]), name="x") == ["ü"]


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros(1, np.float16), "FP16, which has no JSON form"),
        (bytes_tensor([b"\x89PNG"]), "x is not text"),
        (np.zeros(5, np.uint8), "x has 5 values"),
    ],
)
def test_tensors_without_a_json_form_are_refused(array: np.ndarray, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_JSON_VALUES", 4)
    with pytest.raises(InvalidValue, match=f"{sentence}.*binary_data true"):
        to_list(array, name="x")
