from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triptych.errors import MalformedRequest, NotSupported
from triptych.wire.datatypes import DTYPES, Array, bytes_tensor
from triptych.wire.open_inference import (
    Body,
    InferRequest,
    InferResponse,
    RequestedOutput,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    read_header_length,
)

NUMBERS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda datatype: hnp.arrays(DTYPES[datatype], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
TEXTS = st.lists(st.binary(max_size=9), max_size=5).map(bytes_tensor)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=9), NUMBERS | TEXTS, max_size=4)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
PARAMETERS = st.dictionaries(st.text(max_size=9).filter(lambda name: name != "binary_data_output"), SCALARS, max_size=4)


def assert_equal_tensors(left: dict[str, Array], right: dict[str, Array]) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


@settings(deadline=None)
@given(inputs=TENSORS.filter(bool), parameters=PARAMETERS, name=st.none() | st.text(max_size=9))
def test_a_request_comes_back(inputs: dict[str, Array], parameters: dict[str, Any], name: str | None) -> None:
    wanted = (RequestedOutput(name="a"), RequestedOutput(name="b", binary=False))
    body = encode_request(InferRequest(inputs=inputs, parameters=parameters, outputs=wanted, id=name))
    back = decode_request(body.content, body.header_length)
    assert_equal_tensors(dict(back.inputs), inputs)
    assert (back.parameters, back.outputs, back.binary_output, back.id) == (parameters, wanted, True, name)


@settings(deadline=None)
@given(outputs=TENSORS.filter(bool), parameters=PARAMETERS)
def test_a_response_comes_back(outputs: dict[str, Array], parameters: dict[str, Any]) -> None:
    body = encode_response(InferResponse(model_name="m", outputs=outputs, parameters=parameters, id="7"))
    back = decode_response(body.content, body.header_length)
    assert_equal_tensors(dict(back.outputs), outputs)
    assert (back.model_name, back.model_version, back.id, back.parameters) == ("m", "1", "7", parameters)


@pytest.mark.parametrize(
    "tensors",
    [
        {"context": (2, 77, 768), "unconditional_context": (2, 77, 768), "seed": (2,)},
        {"context": (1, 77, 768), "seed": (1,)},
        {"latents": (1, 64, 64, 4)},
    ],
)
def test_the_wire_adds_next_to_nothing_on_stable_diffusion_shapes(tensors: dict[str, tuple[int, ...]]) -> None:
    arrays: dict[str, Array] = {
        name: np.zeros(shape, np.uint64 if name == "seed" else np.float32) for name, shape in tensors.items()
    }
    parameters = {"num_steps": 50, "guidance_scale": 7.5, "sampler": "dpmpp_2m_karras", "width": 512, "height": 512}
    body = encode_request(InferRequest(inputs=arrays, parameters=parameters, id="0" * 32))
    assert len(body.content) <= 1.005 * sum(array.nbytes for array in arrays.values())


def test_tensors_start_where_they_need_not_be_copied() -> None:
    body = encode_request(InferRequest(inputs={"x": np.ones(3, np.float64), "y": np.ones(3, np.float32)}))
    back = decode_request(body.content, body.header_length)
    for array in back.inputs.values():
        assert np.shares_memory(array, np.frombuffer(body.content, np.uint8))


def test_the_headers_of_a_body() -> None:
    assert Body(b"{}", None).headers == {"Content-Type": "application/json"}
    assert Body(b"{}..", 2).headers == {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "2"}


def test_outputs_are_json_where_binary_is_not_asked_for() -> None:
    response = InferResponse(model_name="m", outputs={"x": np.array([[1, 2]], np.int32), "y": np.array([3], np.uint8)})
    mixed = encode_response(response, is_binary=lambda name: name == "y")
    assert json.loads(mixed.content[: mixed.header_length])["outputs"] == [
        {"name": "x", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]},
        {"name": "y", "datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": 1}},
    ]
    plain = encode_response(response, is_binary=lambda _: False)
    assert plain.header_length is None
    assert_equal_tensors(dict(decode_response(plain.content, None).outputs), dict(response.outputs))


def test_absent_fields_are_left_out() -> None:
    body = encode_response(InferResponse(model_name="m", outputs={"x": np.zeros(1, np.int8)}), is_binary=lambda _: False)
    assert set(json.loads(body.content)) == {"model_name", "model_version", "outputs"}


@pytest.mark.parametrize(
    ("extra", "name", "binary"),
    [
        ({}, "x", False),
        ({"parameters": {"binary_data_output": True}}, "x", True),
        (
            {"parameters": {"binary_data_output": True}, "outputs": [{"name": "x", "parameters": {"binary_data": False}}]},
            "x",
            False,
        ),
        ({"outputs": [{"name": "x", "parameters": {"binary_data": True}}, {"name": "y"}]}, "x", True),
        ({"outputs": [{"name": "x", "parameters": {"binary_data": True}}, {"name": "y"}]}, "y", False),
    ],
)
def test_who_asks_for_binary_gets_it(extra: dict[str, Any], name: str, binary: bool) -> None:
    request = decode_request(json.dumps({"inputs": [], **extra}).encode(), None)
    assert request.wants_binary(name) is binary
    assert "binary_data_output" not in request.parameters


def test_which_outputs_are_wanted() -> None:
    assert decode_request(b'{"inputs": []}', None).wants("x")
    some = decode_request(b'{"inputs": [], "outputs": [{"name": "x"}]}', None)
    assert (some.wants("x"), some.wants("y")) == (True, False)


def test_null_stands_for_absent() -> None:
    request = decode_request(b'{"id": null, "parameters": null, "outputs": null, "inputs": []}', None)
    assert (request.id, request.parameters, request.outputs) == (None, {}, ())


def tensor(**changes: Any) -> dict[str, Any]:
    fields = {"name": "x", "datatype": "INT8", "shape": [1], "data": [1], **changes}
    return {"inputs": [{key: value for key, value in fields.items() if value is not ...}]}


BAD_HEADERS: list[tuple[dict[str, Any], str]] = [
    ({}, "the request has no inputs"),
    ({"inputs": {}}, "inputs of the request must be a list"),
    ({"inputs": [1]}, "an input must be a JSON object"),
    ({"inputs": [], "id": 7}, "id of the request must be a string"),
    ({"inputs": [], "priority": 1}, "the request has the field 'priority'; known are id"),
    ({"inputs": [], "parameters": []}, "parameters of the request must be an object"),
    ({"inputs": [], "parameters": {"a": [1]}}, "the parameter 'a' of the request must be a string, a finite number"),
    ({"inputs": [], "parameters": {"a": None}}, "the parameter 'a' of the request must be"),
    ({"inputs": [], "parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
    ({"inputs": [], "outputs": [{"name": "x"}, {"name": "x"}]}, "the output 'x' is requested twice"),
    ({"inputs": [], "outputs": ["x"]}, "a requested output must be a JSON object"),
    ({"inputs": [], "outputs": [{}]}, "a requested output has no name"),
    (
        {"inputs": [], "outputs": [{"name": "x", "parameters": {"classification": 3}}]},
        "parameter 'classification'; known is binary_data",
    ),
    (
        {"inputs": [], "outputs": [{"name": "x", "parameters": {"binary_data": "yes"}}]},
        "binary_data of the output 'x' must be true",
    ),
    (tensor(name=...), "an input has no name"),
    (tensor(name=3), "name of an input must be a string"),
    (tensor(datatype=...), "an input has no datatype"),
    (tensor(datatype="BF16"), "the input 'x' has the datatype 'BF16'; known are BOOL"),
    (tensor(datatype="fp32"), "the datatype 'fp32'"),
    (tensor(shape=...), "an input has no shape"),
    (tensor(shape=[-1]), "the shape of the input 'x' must be"),
    (tensor(shape=[1.0]), "the shape of the input 'x' must be"),
    (tensor(shape=[True]), "the shape of the input 'x' must be"),
    (tensor(shape=["1"]), "the shape of the input 'x' must be"),
    (tensor(shape=[10**30]), "the shape of the input 'x' must be"),
    (tensor(shape=[1] * 9), "the shape of the input 'x' must be"),
    (tensor(data=...), "the input 'x' needs either data or a binary_data_size"),
    (tensor(parameters={"binary_data_size": 1}), "the input 'x' needs either data or a binary_data_size"),
    (tensor(data=..., parameters={"binary_data_size": 1}), "says 1 bytes of binary data, the body has 0 left"),
    (tensor(data=..., parameters={"binary_data_size": -1}), "binary_data_size of the input 'x' must be a number of bytes"),
    (tensor(data=..., parameters={"binary_data_size": True}), "binary_data_size of the input 'x' must be a number of bytes"),
    (tensor(data=..., parameters={"binary_data_size": "1"}), "binary_data_size of the input 'x' must be a number of bytes"),
    (tensor(parameters={"compressed": True}), "the input 'x' has the parameter 'compressed'; known is binary_data_size"),
    (tensor(note="hi"), "an input has the field 'note'"),
    ({"inputs": [*tensor()["inputs"], *tensor()["inputs"]]}, "the input 'x' appears twice"),
    (tensor(name="n" * 1000, data=...), "'n{61}...' needs either data"),
]


@pytest.mark.parametrize(("header", "sentence"), BAD_HEADERS)
def test_a_bad_header_is_refused(header: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        decode_request(json.dumps(header).encode(), None)


def test_an_infinite_parameter_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="finite number"):
        decode_request(b'{"inputs": [], "parameters": {"a": 1e999}}', None)


def test_shared_memory_is_not_offered() -> None:
    header = tensor(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": 4})
    with pytest.raises(NotSupported, match="shared memory"):
        decode_request(json.dumps(header).encode(), None)


@pytest.mark.parametrize(
    ("surplus", "length", "sentence"),
    [
        (b"..", 0, "the body has 2 bytes that no tensor"),
        (b"", +1, "Inference-Header-Content-Length is .* bytes in all"),
        (b"", -1, "the request is not valid JSON"),
    ],
)
def test_lengths_that_contradict_are_refused(surplus: bytes, length: int, sentence: str) -> None:
    text = json.dumps(tensor()).encode()
    with pytest.raises(MalformedRequest, match=sentence):
        decode_request(text + surplus, len(text) + length)


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1e3", "x", "٣", "9" * 40])
def test_a_header_length_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length must be a number of bytes"):
        read_header_length({"Inference-Header-Content-Length": text})


def test_the_header_length() -> None:
    assert read_header_length({"Inference-Header-Content-Length": "12"}) == 12
    assert read_header_length({}) is None


@settings(deadline=None)
@given(st.binary(max_size=300), st.none() | st.integers(0, 300))
def test_garbage_is_refused_and_nothing_else(content: bytes, header_length: int | None) -> None:
    with pytest.raises(MalformedRequest):
        decode_request(content, header_length)


@settings(deadline=None)
@given(st.data())
def test_a_request_with_a_changed_byte_is_read_or_refused(data: st.DataObject) -> None:
    body = encode_request(InferRequest(inputs={"x": np.arange(3), "t": bytes_tensor([b"ab", b"c"])}, parameters={"a": 1}))
    content = bytearray(body.content)
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = decode_request(bytes(content), body.header_length)
    except (MalformedRequest, NotSupported):
        return
    assert sum(array.nbytes for array in request.inputs.values()) <= len(content)
