from __future__ import annotations

import contextlib
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triptych.errors import (
    CallerError,
    Conflict,
    InvalidValue,
    MalformedRequest,
    NotSupported,
    QueueFull,
    StageFailed,
    TooLarge,
    TriptychError,
)
from triptych.wire.frames import MAX_HEADER_BYTES, Frame, FrameReader, Kind, Refusal, encode_frame, error_frame, read_refusal
from triptych.wire.metadata import ANY, TensorSpec
from triptych.wire.open_inference import InferResponse

X = TensorSpec(name="x", datatype="FP32", shape=(ANY, ANY))
Y = TensorSpec(name="y", datatype="INT32", shape=(ANY,), optional=True)
REFUSALS = (MalformedRequest, InvalidValue, TooLarge, NotSupported)


def new_reader(limit: int = 1000) -> FrameReader:
    return FrameReader({Kind.STATE: (X, Y), Kind.RESULT: (X,)}, limit=limit)


def frame_of(kind: Kind, *, parameters: Any = None, **outputs: np.ndarray) -> Frame:
    return Frame(kind=kind, response=InferResponse(model_name="m", outputs=outputs, parameters=parameters or {}, id="7"))


PROGRESS = frame_of(Kind.PROGRESS, parameters={"position": 1, "num_evaluations": 2})
STATE = frame_of(Kind.STATE, x=np.arange(6, dtype=np.float32).reshape(2, 3), y=np.array([1, 2], np.int32))
RESULT = frame_of(Kind.RESULT, x=np.ones((1, 2), np.float32))
STREAM = b"".join(map(encode_frame, (PROGRESS, STATE, RESULT)))


def raw_frame(header: Any, tensors: bytes = b"") -> bytes:
    """Written here by hand and not by the code under test."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + tensors


def assert_same_frames(left: list[Frame], right: list[Frame]) -> None:
    assert [(frame.kind, frame.error) for frame in left] == [(frame.kind, frame.error) for frame in right]
    for one, other in zip(left, right, strict=True):
        assert (one.response.parameters, one.response.id) == (other.response.parameters, other.response.id)
        assert list(one.response.outputs) == list(other.response.outputs)
        for name, array in one.response.outputs.items():
            assert (array.dtype, array.shape) == (other.response.outputs[name].dtype, other.response.outputs[name].shape)
            assert array.tobytes() == other.response.outputs[name].tobytes()


def test_a_frame_is_a_length_a_header_and_tensors() -> None:
    content = encode_frame(STATE)
    (length,) = struct.unpack_from("<I", content)
    text, tensors = content[4 : 4 + length], content[4 + length :]
    header = json.loads(text)
    checksum = header.pop("crc32")
    zeroed = text.replace(checksum.encode(), b"00000000")
    assert checksum == f"{zlib.crc32(zeroed + tensors):08x}"
    assert header == {
        "kind": "state",
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}},
            {"name": "y", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}},
        ],
    }
    assert tensors == STATE.response.outputs["x"].tobytes() + STATE.response.outputs["y"].tobytes()


def test_a_frame_written_by_hand_is_read() -> None:
    output = {"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
    header = {"kind": "result", "model_name": "m", "outputs": [output]}
    (frame,) = new_reader().feed(raw_frame(header, struct.pack("<f", 0.5)))
    assert frame.kind is Kind.RESULT
    assert frame.response.outputs["x"].tolist() == [[0.5]]


ROWS = st.integers(1, 3)
FRAMES = st.one_of(
    st.builds(
        lambda position, total: frame_of(Kind.PROGRESS, parameters={"position": position, "num_evaluations": total}),
        st.integers(0, 99),
        st.integers(0, 99),
    ),
    st.builds(
        lambda x, y: frame_of(Kind.STATE, x=x, **({} if y is None else {"y": y})),
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4)),
        st.none() | hnp.arrays(np.int32, st.integers(0, 4)),
    ),
)


@settings(deadline=None)
@given(frames=st.lists(FRAMES, max_size=4), size=st.integers(1, 64))
def test_frames_come_back_however_they_are_cut(frames: list[Frame], size: int) -> None:
    frames = [*frames, RESULT]
    content = b"".join(map(encode_frame, frames))
    reader = new_reader()
    back: list[Frame] = []
    for start in range(0, len(content), size):
        assert not reader.is_complete
        back += reader.feed(content[start : start + size])
    assert reader.is_complete
    assert_same_frames(back, frames)


@settings(deadline=None)
@given(length=st.integers(0, len(STREAM) - 1))
def test_a_stream_that_is_cut_anywhere_is_not_complete(length: int) -> None:
    reader = new_reader()
    list(reader.feed(STREAM[:length]))
    assert not reader.is_complete


@settings(deadline=None, max_examples=300)
@given(
    place=st.integers(0, len(STREAM) - 1),
    length=st.integers(0, 8),
    replacement=st.binary(max_size=8),
    size=st.integers(1, len(STREAM)),
)
def test_spoilt_frames_are_refused_or_read_but_nothing_else(place: int, length: int, replacement: bytes, size: int) -> None:
    content = STREAM[:place] + replacement + STREAM[place + length :]
    reader = new_reader()
    with contextlib.suppress(*REFUSALS):
        for start in range(0, len(content), size):
            for frame in reader.feed(content[start : start + size]):
                assert sum(array.nbytes for array in frame.response.outputs.values()) <= 1000
                if frame.kind is Kind.ERROR:
                    read_refusal(frame)


def x_of(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}, **changes}


def result(*outputs: Any, **changes: Any) -> bytes:
    return raw_frame({"kind": "result", "model_name": "m", "outputs": list(outputs), **changes})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (struct.pack("<I", MAX_HEADER_BYTES + 1), "a frame's header has 65537 bytes, at most 65536 are read"),
        (struct.pack("<I", 2**32 - 1), "a frame's header has 4294967295 bytes"),
        (raw_frame(b""), "a frame's header is not valid JSON"),
        (raw_frame(b"[]"), "a frame's header must be a JSON object"),
        (result(x_of(), kind="preview"), "a frame is of the kind 'preview'; known are progress, state, result, error"),
        (result(x_of(), kind=None), "a frame is of the kind 'None'"),
        (result(x_of(), kind=["result"]), "a frame is of the kind"),
        (result(x_of(), error=7), "the error of a frame must be a string"),
        (result(), "a frame of the kind result has no x"),
        (result(x_of(), x_of()), "has the output 'x', which it must not have"),
        (result(x_of(), x_of(name="y")), "has the output 'y', which it must not have"),
        (result(x_of(), kind="progress"), "a frame of the kind progress has the output 'x'"),
        (result(x_of(datatype="FP64")), "x must be FP32, not FP64"),
        (result(x_of(datatype="BYTES")), "x must be FP32, not BYTES"),
        (result(x_of(shape=[1])), r"x must have the shape \[-1, -1\], not \[1\]"),
        (result(x_of(shape=[2**40, 2**40])), "must be binary data of the size of its shape"),
        (result(x_of(parameters=None, data=[1.0])), "must be binary data of the size of its shape"),
        (result(x_of(shape=[1, 251], parameters={"binary_data_size": 1004})), "have 1004 bytes, at most 1000 are read"),
        (STREAM + b"\0", "there are bytes after the last frame"),
        (STREAM + STREAM, "there are bytes after the last frame"),
    ],
)
def test_what_is_no_frame_is_refused_before_its_tensors_come(content: bytes, sentence: str) -> None:
    with pytest.raises((MalformedRequest, InvalidValue), match=sentence):
        list(new_reader().feed(content))


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (Conflict("another plan", param="state_key"), Refusal(status=409, sentence="another plan", param="state_key")),
        (InvalidValue("no"), Refusal(status=422, sentence="no")),
        (QueueFull("full", retry_after_seconds=2.5), Refusal(status=429, sentence="full", retry_after_seconds=2.5)),
        (StageFailed("NaN", stage="diffusion"), Refusal(status=502, sentence="NaN")),
    ],
)
def test_an_error_arrives(error: TriptychError, refusal: Refusal) -> None:
    reader = new_reader()
    (frame,) = reader.feed(encode_frame(error_frame(error, model_name="m")))
    assert read_refusal(frame) == refusal
    assert reader.is_complete
    assert (frame.response.parameters["type"], frame.response.parameters["code"]) == (error.type, error.code)
    assert frame.response.parameters.get("stage") == (None if isinstance(error, CallerError) else "diffusion")


@pytest.mark.parametrize(
    "changes",
    [
        {"error": None},
        {"parameters": {}},
        {"parameters": {"status": "409"}},
        {"parameters": {"status": True}},
        {"parameters": {"status": 409, "param": 7}},
        {"parameters": {"status": 429, "retry_after_seconds": -1}},
        {"parameters": {"status": 429, "retry_after_seconds": "soon"}},
    ],
)
def test_an_error_that_says_nothing_is_refused(changes: Any) -> None:
    header = {"kind": "error", "model_name": "m", "error": "no", "parameters": {"status": 409}, **changes}
    (frame,) = new_reader().feed(raw_frame(header))
    with pytest.raises(MalformedRequest):
        read_refusal(frame)


@pytest.mark.parametrize("place", range(4, len(encode_frame(STATE))))
def test_a_byte_that_changed_on_the_way_is_noticed(place: int) -> None:
    content = bytearray(encode_frame(STATE))
    content[place] ^= 1
    reader, found = new_reader(), []
    with contextlib.suppress(CallerError):
        found = list(reader.feed(bytes(content)))
    # What makes the field `crc32` another one leaves a frame that claims nothing, and is as it was otherwise.
    assert found == [] or b'"crc32":"' not in content
    for frame in found:
        assert_same_frames([frame], [STATE])


def test_a_frame_without_a_checksum_claims_nothing() -> None:
    header = {"kind": "progress", "model_name": "m", "parameters": {"position": 1}}
    (frame,) = new_reader().feed(raw_frame(header))
    assert frame.response.parameters == {"position": 1}
