"""The Open Inference Protocol v2 over HTTP, with the binary tensor extension: requests and responses to bytes and back.

::

    JSON header                                        tensors, in the order of the header
    ├── Inference-Header-Content-Length ──────────────┼── binary_data_size ──┼── ... ┤
    ├── Content-Length ───────────────────────────────────────────────────────────────┤

What arrives is checked against itself here: fields, types, shapes, sizes. Whether it fits a model is `metadata.py`'s question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from triptych.errors import MalformedRequest, NotSupported
from triptych.wire.datatypes import DATATYPES, Array, Buffer, datatype_of, pack, unpack
from triptych.wire.json_text import from_list, parse_object, to_list

Scalar: TypeAlias = bool | int | float | str

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_CONTENT_TYPE = "application/octet-stream"
JSON_CONTENT_TYPE = "application/json"

VERSION = "1"
"""The one version that each of our models has."""

_MAX_DIMENSIONS = 8
_ALIGNMENT = 16


@dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """An output that the caller wants; `binary` None leaves the form to the request."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """One inference as the protocol sees it.

    Attributes:
        outputs: The outputs wanted; none stands for all.
        binary_output: Whether outputs that do not say otherwise are answered as binary data.
        model_name: As the header may repeat it; the address is what counts.
    """

    inputs: Mapping[str, Array]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    outputs: tuple[RequestedOutput, ...] = ()
    binary_output: bool = True
    id: str | None = None
    model_name: str | None = None

    def wants(self, output: str) -> bool:
        return not self.outputs or any(wanted.name == output for wanted in self.outputs)

    def wants_binary(self, output: str) -> bool:
        for wanted in self.outputs:
            if wanted.name == output and wanted.binary is not None:
                return wanted.binary
        return self.binary_output


@dataclass(frozen=True, kw_only=True)
class InferResponse:
    """What a model answered."""

    model_name: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    model_version: str | None = VERSION
    id: str | None = None


@dataclass(frozen=True)
class Body:
    """A message as HTTP carries it. `header_length` None: all of it is JSON."""

    content: bytes
    header_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        if self.header_length is None:
            return {"Content-Type": JSON_CONTENT_TYPE}
        return {"Content-Type": BINARY_CONTENT_TYPE, HEADER_LENGTH: str(self.header_length)}


def encode_request(request: InferRequest) -> Body:
    """A request with all tensors as binary data."""
    tensors, blobs = _write_tensors(request.inputs, is_binary=lambda _: True)
    header: dict[str, Any] = {
        "id": request.id,
        "parameters": {**request.parameters, "binary_data_output": request.binary_output},
        "inputs": tensors,
        "outputs": [_write_wanted(wanted) for wanted in request.outputs],
    }
    return _join(header, blobs)


def encode_response(
    response: InferResponse,
    *,
    is_binary: Callable[[str], bool] = lambda _: True,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> Body:
    """A response.

    Args:
        response: What to answer.
        is_binary: Whether an output, by name, was asked for as binary data.
        fields: More for the header.

    Raises:
        InvalidValue: An output that was asked for as JSON has no JSON form.
    """
    tensors, blobs = _write_tensors(response.outputs, is_binary=is_binary)
    header: dict[str, Any] = {
        **fields,
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "parameters": response.parameters,
        "outputs": tensors,
    }
    return _join(header, blobs)


@dataclass(frozen=True, kw_only=True)
class Announced:
    """What a header says of a tensor. `size` in bytes; None where the header has the data itself."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int | None


def decode_request(
    content: bytes, header_length: int | None, *, check: Callable[[Sequence[Announced]], None] | None = None
) -> InferRequest:
    """A request; its tensors are read-only and share the body's memory.

    Args:
        content: The body.
        header_length: As `read_header_length` reads it.
        check: Refuses what the header says of the tensors, before any of them is made.

    Raises:
        MalformedRequest, TooLarge, NotSupported: It is no request that could be read; one sentence says why.
    """
    header, blobs = _split(content, header_length, what="the request")
    fields = _Fields(header, "the request", {"id", "parameters", "inputs", "outputs", "model_name", "model_version"})
    parameters = _read_parameters(fields.get("parameters", dict, {}), "the request")
    binary_output = parameters.pop("binary_data_output", False)
    if not isinstance(binary_output, bool):
        raise MalformedRequest("binary_data_output must be true or false")
    inputs = fields.need("inputs", list)
    if check is not None:
        check(_read_all_announced(inputs, kind="input"))
    return InferRequest(
        inputs=_read_tensors(inputs, blobs, kind="input"),
        parameters=parameters,
        outputs=_read_wanted(fields.get("outputs", list, [])),
        binary_output=binary_output,
        id=fields.get("id", str, None),
        model_name=fields.get("model_name", str, None),
    )


def decode_response(content: bytes, header_length: int | None) -> InferResponse:
    """A response; its tensors are read-only and share the body's memory.

    Raises:
        MalformedRequest, TooLarge, NotSupported: It is no response that could be read; one sentence says why.
    """
    header, blobs = _split(content, header_length, what="the response")
    _Fields(header, "the response", None).need("outputs", list)
    return _read_response(header, blobs)


def read_response(header: dict[str, Any], tensors: bytes) -> InferResponse:
    """A response whose header has been parsed, and that need not have outputs.

    Raises:
        MalformedRequest, TooLarge, NotSupported: As `decode_response`.
    """
    return _read_response(header, _Blobs(memoryview(tensors)))


def announced_outputs(header: Mapping[str, Any]) -> tuple[Announced, ...]:
    """What a response's header says of its outputs, to know it before their bytes have come.

    Raises:
        MalformedRequest, NotSupported: It does not say it as the protocol wants it.
    """
    return _read_all_announced(_Fields(header, "the response", None).get("outputs", list, []), kind="output")


def read_header_length(headers: Mapping[str, str]) -> int | None:
    """How long the JSON of a body is, by its HTTP headers (any mapping that ignores case); None where all of it is JSON.

    Raises:
        MalformedRequest: The header is not a number of bytes.
    """
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise MalformedRequest(f"{HEADER_LENGTH} must be a number of bytes")
    return int(text)


# Writing


def _write_tensors(
    tensors: Mapping[str, Array], *, is_binary: Callable[[str], bool]
) -> tuple[list[dict[str, Any]], list[Buffer]]:
    entries: list[dict[str, Any]] = []
    blobs: list[Buffer] = []
    for name, array in tensors.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if is_binary(name):
            blobs.append(pack(array))
            entry["parameters"] = {"binary_data_size": memoryview(blobs[-1]).nbytes}
        else:
            entry["data"] = to_list(array, name=name)
        entries.append(entry)
    return entries, blobs


def _write_wanted(wanted: RequestedOutput) -> dict[str, Any]:
    parameters = {} if wanted.binary is None else {"parameters": {"binary_data": wanted.binary}}
    return {"name": wanted.name, **parameters}


def _join(header: Mapping[str, Any], blobs: list[Buffer]) -> Body:
    present = {key: value for key, value in header.items() if value is not None and value != {} and value != []}
    text = json.dumps(present, separators=(",", ":"), allow_nan=False).encode("ascii")
    if not blobs:
        return Body(text, None)
    # Blanks after JSON mean nothing; they bring the tensors to where their reader need not copy them.
    text += b" " * (-len(text) % _ALIGNMENT)
    return Body(b"".join([text, *blobs]), len(text))


# Reading


def _read_response(header: dict[str, Any], blobs: _Blobs) -> InferResponse:
    fields = _Fields(header, "the response", None)
    return InferResponse(
        model_name=fields.need("model_name", str),
        model_version=fields.get("model_version", str, None),
        id=fields.get("id", str, None),
        parameters=_read_parameters(fields.get("parameters", dict, {}), "the response"),
        outputs=_read_tensors(fields.get("outputs", list, []), blobs, kind="output"),
    )


class _Blobs:
    """The bytes behind the header, taken from the front; in the end none may be left."""

    def __init__(self, content: memoryview) -> None:
        self._rest = content

    def take(self, size: int, name: str) -> memoryview:
        if size > len(self._rest):
            raise MalformedRequest(f"{name} says {size} bytes of binary data, the body has {len(self._rest)} left")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def finish(self) -> None:
        if len(self._rest):
            raise MalformedRequest(f"the body has {len(self._rest)} bytes that no tensor of its header accounts for")


class _Fields:
    """A JSON object whose fields are read with the type they must have. JSON's null stands for an absent field.

    Args:
        known: The names that it may have; None for any.
    """

    def __init__(self, mapping: Any, what: str, known: set[str] | None) -> None:
        if not isinstance(mapping, dict):
            raise MalformedRequest(f"{what} must be a JSON object")
        if known is not None and (unknown := sorted(set(mapping) - known)):
            raise MalformedRequest(f"{what} has the field {quoted(unknown[0])}; known are {', '.join(sorted(known))}")
        self._mapping = mapping
        self._what = what

    def get(self, key: str, of: type, default: Any) -> Any:
        value = self._mapping.get(key)
        if value is None:
            return default
        if not isinstance(value, of):
            raise MalformedRequest(f"{key} of {self._what} must be {_WORDS[of]}")
        return value

    def need(self, key: str, of: type) -> Any:
        value = self.get(key, of, None)
        if value is None:
            raise MalformedRequest(f"{self._what} has no {key}")
        return value


_WORDS: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}


def quoted(name: str) -> str:
    """A name that a stranger chose, fit for a sentence."""
    return repr(name if len(name) <= 64 else name[:61] + "...")


def _split(content: bytes, header_length: int | None, *, what: str) -> tuple[dict[str, Any], _Blobs]:
    view = memoryview(content)
    length = len(view) if header_length is None else header_length
    if length > len(view):
        raise MalformedRequest(f"{HEADER_LENGTH} is {length}, but {what} has {len(view)} bytes in all")
    return parse_object(view[:length], what=what), _Blobs(view[length:])


def _read_parameters(mapping: dict[str, Any], what: str) -> dict[str, Scalar]:
    for name, value in mapping.items():
        if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise MalformedRequest(f"the parameter {quoted(name)} of {what} must be a string, a finite number or a boolean")
    return mapping


def _read_wanted(entries: list[Any]) -> tuple[RequestedOutput, ...]:
    wanted: dict[str, RequestedOutput] = {}
    for entry in entries:
        fields = _Fields(entry, "a requested output", {"name", "parameters"})
        name = fields.need("name", str)
        if name in wanted:
            raise MalformedRequest(f"the output {quoted(name)} is requested twice")
        wanted[name] = RequestedOutput(name=name, binary=_read_binary(name, fields.get("parameters", dict, {})))
    return tuple(wanted.values())


def _read_binary(name: str, parameters: dict[str, Any]) -> bool | None:
    _refuse_other_parameters(f"the output {quoted(name)}", parameters, "binary_data")
    binary = parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise MalformedRequest(f"binary_data of the output {quoted(name)} must be true or false")
    return binary


def _read_tensors(entries: list[Any], blobs: _Blobs, *, kind: str) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for entry in entries:
        fields, words = _open_tensor(entry, kind)
        name = fields.need("name", str)
        if name in tensors:
            raise MalformedRequest(f"{words} appears twice")
        tensors[name] = _read_tensor(fields, blobs, words)
    blobs.finish()
    return tensors


def _open_tensor(entry: Any, kind: str) -> tuple[_Fields, str]:
    """A tensor's fields, and what it is called in sentences."""
    fields = _Fields(entry, f"an {kind}", {"name", "shape", "datatype", "parameters", "data"})
    return fields, f"the {kind} {quoted(fields.need('name', str))}"


def _read_tensor(fields: _Fields, blobs: _Blobs, words: str) -> Array:
    announced = _read_announced(fields, words)
    data = fields.get("data", object, None)
    if (announced.size is None) == (data is None):
        raise MalformedRequest(f"{words} needs either data or a binary_data_size")
    if announced.size is None:
        return from_list(announced.datatype, announced.shape, data, name=words)
    return unpack(announced.datatype, announced.shape, blobs.take(announced.size, words), name=words)


def _read_all_announced(entries: list[Any], *, kind: str) -> tuple[Announced, ...]:
    return tuple(_read_announced(*_open_tensor(entry, kind)) for entry in entries)


def _read_announced(fields: _Fields, words: str) -> Announced:
    return Announced(
        name=fields.need("name", str),
        datatype=_read_datatype(fields.need("datatype", str), words),
        shape=tuple(_read_shape(fields.need("shape", list), words)),
        size=_read_size(words, fields.get("parameters", dict, {})),
    )


def _read_datatype(datatype: str, name: str) -> str:
    if datatype not in DATATYPES:
        raise MalformedRequest(f"{name} has the datatype {quoted(datatype)}; known are {', '.join(DATATYPES)}")
    return datatype


def _read_shape(shape: list[Any], name: str) -> list[int]:
    # type() and not isinstance(): JSON's true is no dimension.
    if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise MalformedRequest(f"the shape of {name} must be a list of at most {_MAX_DIMENSIONS} whole numbers, none negative")
    return shape


def _read_size(name: str, parameters: dict[str, Any]) -> int | None:
    _refuse_other_parameters(name, parameters, "binary_data_size")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise MalformedRequest(f"binary_data_size of {name} must be a number of bytes")
    return size


def _refuse_other_parameters(what: str, parameters: Iterable[str], known: str) -> None:
    unknown = sorted(set(parameters) - {known})
    if any(name.startswith("shared_memory") for name in unknown):
        raise NotSupported(f"{what} is in shared memory, which is not supported: send it as binary data")
    if unknown:
        raise MalformedRequest(f"{what} has the parameter {quoted(unknown[0])}; known is {known}")
