"""Answers in frames: what becomes of an inference while it runs.

::

    ┌ one frame ────────────────────────────────────────────────────────────┐
    │ length of the JSON header │ JSON header │ tensors, in the header's order │ next frame ...
    │ uint32, little-endian     │             │ binary_data_size each          │
    └───────────────────────────────────────────────────────────────────────┘

The header is that of an Open Inference response, and says as `kind` what the frame is. Its `crc32` is of the header and the
tensors, made while its own digits are zeros. The last frame is a `result` or an `error`; a stream that ends otherwise broke.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from triptych.errors import CallerError, InvalidValue, MalformedRequest, QueueFull, StageError, TriptychError
from triptych.wire.datatypes import DTYPES
from triptych.wire.json_text import parse_object
from triptych.wire.metadata import TensorSpec, check_shape
from triptych.wire.open_inference import (
    Announced,
    InferResponse,
    Scalar,
    announced_outputs,
    encode_response,
    quoted,
    read_response,
)

MEDIA_TYPE = "application/vnd.triptych.frames"

MAX_HEADER_BYTES = 2**16

_LENGTH = struct.Struct("<I")

# A quotation mark inside of a JSON string is escaped: these bytes are the field and nothing else.
_CHECKSUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')
_NO_CHECKSUM = "00000000"


class Kind(StrEnum):
    """What a frame is."""

    PROGRESS = "progress"
    STATE = "state"
    RESULT = "result"
    ERROR = "error"

    @property
    def is_last(self) -> bool:
        return self in (Kind.RESULT, Kind.ERROR)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame. `error` is the sentence of an error, and None in all others."""

    kind: Kind
    response: InferResponse
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An error as it travels: enough for whoever reads it to raise the same one.

    Attributes:
        param: The field or tensor at fault, where one can be named.
    """

    status: int
    sentence: str
    param: str | None = None
    retry_after_seconds: float | None = None


# Writing


def encode_frame(frame: Frame) -> bytes:
    """The bytes of a frame, tensors as binary data."""
    body = encode_response(frame.response, fields={"kind": str(frame.kind), "error": frame.error, "crc32": _NO_CHECKSUM})
    length = len(body.content) if body.header_length is None else body.header_length
    checksum = _with_checksum(body.content[:length], zlib.crc32(body.content))
    return b"".join((_LENGTH.pack(length), checksum, memoryview(body.content)[length:]))


def _with_checksum(header: bytes, checksum: int) -> bytes:
    return _CHECKSUM.sub(b'"crc32":"%08x"' % checksum, header, count=1)


def error_frame(error: TriptychError, *, model_name: str) -> Frame:
    """The last frame of an inference that failed on its way."""
    details: dict[str, Scalar | None] = {
        "status": error.status,
        "type": error.type,
        "code": error.code,
        "param": error.param if isinstance(error, CallerError) else None,
        "stage": error.stage if isinstance(error, StageError) else None,
        "retry_after_seconds": error.retry_after_seconds if isinstance(error, QueueFull) else None,
    }
    parameters = {name: value for name, value in details.items() if value is not None}
    return Frame(
        kind=Kind.ERROR, response=InferResponse(model_name=model_name, parameters=parameters, outputs={}), error=error.message
    )


# Reading


def read_refusal(frame: Frame) -> Refusal:
    """What an error's frame says.

    Raises:
        MalformedRequest: It does not say what went wrong.
    """
    parameters = frame.response.parameters
    status, param = parameters.get("status"), parameters.get("param")
    seconds = parameters.get("retry_after_seconds")
    if frame.error is None or type(status) is not int or not isinstance(param, str | None):
        raise MalformedRequest("an error's frame must have a sentence as error, and a status")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0):
        raise MalformedRequest("retry_after_seconds of an error's frame must be a number of seconds")
    return Refusal(status=status, sentence=frame.error, param=param, retry_after_seconds=seconds)


class FrameReader:
    """Takes a stream apart as it arrives, and holds no more of it than one frame.

    What a frame announces is checked before its tensors are waited for.

    Args:
        outputs: The tensors that frames of each kind have; kinds that are absent have none.
        limit: Bytes of all tensors of one frame.

    Attributes:
        is_complete: Whether the last frame has come. A stream that ends before that broke.
    """

    def __init__(self, outputs: Mapping[Kind, Sequence[TensorSpec]], *, limit: int) -> None:
        self.is_complete = False
        self._outputs = outputs
        self._limit = limit
        self._buffer = bytearray()
        self._open: _OpenFrame | None = None

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete.

        Raises:
            MalformedRequest, InvalidValue, TooLarge, NotSupported: This is no frame, or none of this inference.
        """
        self._buffer += chunk
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        if self.is_complete and self._buffer:
            raise MalformedRequest("there are bytes after the last frame")
        if self._open is None:
            self._open = self._next_header()
        if self._open is None or len(self._buffer) < self._open.size:
            return None
        opened, self._open = self._open, None
        tensors = self._take(opened.size)
        opened.check(tensors)
        response = read_response(opened.header, tensors)
        self.is_complete = opened.kind.is_last
        return Frame(kind=opened.kind, response=response, error=opened.error)

    def _next_header(self) -> _OpenFrame | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_HEADER_BYTES:
            raise MalformedRequest(f"a frame's header has {length} bytes, at most {MAX_HEADER_BYTES} are read")
        if len(self._buffer) < _LENGTH.size + length:
            return None
        self._take(_LENGTH.size)
        return self._read_header(self._take(length))

    def _read_header(self, text: bytes) -> _OpenFrame:
        header = parse_object(memoryview(text), what="a frame's header")
        kind, error = header.get("kind"), header.get("error")
        if not isinstance(kind, str) or kind not in list(Kind):
            raise MalformedRequest(f"a frame is of the kind {quoted(str(kind))}; known are {', '.join(Kind)}")
        if not isinstance(error, str | None):
            raise MalformedRequest("the error of a frame must be a string")
        announced = announced_outputs(header)
        _check_announced(announced, self._outputs.get(Kind(kind), ()), kind)
        size = sum(tensor.size or 0 for tensor in announced)
        if size > self._limit:
            raise MalformedRequest(f"the tensors of a frame have {size} bytes, at most {self._limit} are read")
        return _OpenFrame(kind=Kind(kind), text=text, header=header, error=error, size=size)

    def _take(self, size: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken


@dataclass(frozen=True, kw_only=True)
class _OpenFrame:
    """A frame whose header has come; `size` bytes of tensors are still to come."""

    kind: Kind
    text: bytes
    header: dict[str, Any]
    error: str | None
    size: int

    def check(self, tensors: bytes) -> None:
        """Raises MalformedRequest where the frame is not what it was when it was sent. One without `crc32` claims nothing."""
        if (found := _CHECKSUM.search(self.text)) is None:
            return
        computed = zlib.crc32(tensors, zlib.crc32(_with_checksum(self.text, 0)))
        if computed != int(found[1], 16):
            raise MalformedRequest(f"a frame's crc32 is {computed:08x}, and says that it is {found[1].decode()}")


def _check_announced(announced: Sequence[Announced], specs: Sequence[TensorSpec], kind: str) -> None:
    """Refuses tensors that frames of a kind do not have."""
    known = {spec.name: spec for spec in specs}
    names = [tensor.name for tensor in announced]
    if missing := [spec.name for spec in specs if not spec.optional and spec.name not in names]:
        raise MalformedRequest(f"a frame of the kind {kind} has no {missing[0]}")
    for tensor in announced:
        if tensor.name not in known or names.count(tensor.name) > 1:
            raise MalformedRequest(f"a frame of the kind {kind} has the output {quoted(tensor.name)}, which it must not have")
        spec = known[tensor.name]
        if tensor.datatype != spec.datatype:
            raise InvalidValue(f"{spec.name} must be {spec.datatype}, not {tensor.datatype}", param=spec.name)
        check_shape(tensor.shape, spec)
        if tensor.size != math.prod(tensor.shape) * DTYPES[spec.datatype].itemsize:
            raise MalformedRequest(f"the {tensor.name} of a frame must be binary data of the size of its shape")
