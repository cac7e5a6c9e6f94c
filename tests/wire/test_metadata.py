from __future__ import annotations

import json

import numpy as np
import pytest

from triptych.errors import InvalidValue, MalformedRequest, NotSupported
from triptych.wire.datatypes import Array, bytes_tensor
from triptych.wire.metadata import (
    ANY,
    ModelMetadata,
    TensorSpec,
    check_inputs,
    check_outputs,
    raw_request,
    take_output,
)
from triptych.wire.open_inference import InferRequest, RequestedOutput

X = TensorSpec(name="x", datatype="FP32", shape=(ANY, 2))
TEXT = TensorSpec(name="text", datatype="BYTES", shape=(ANY,), optional=True)
METADATA = ModelMetadata(name="m", inputs=(X, TEXT), outputs=(X,), parameters={"scale": 0.5})

ROW = np.ones((1, 2), np.float32)


def test_metadata_comes_back_from_json() -> None:
    text = json.dumps(METADATA.to_json())
    assert ModelMetadata.from_json(json.loads(text)) == METADATA
    assert json.loads(text)["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "text", "datatype": "BYTES", "shape": [-1], "optional": True},
    ]


def test_other_servers_metadata_may_say_less() -> None:
    assert ModelMetadata.from_json({"name": "m", "inputs": [], "outputs": []}).parameters == {}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"name": "m", "inputs": 3, "outputs": []},
        {"name": "m", "inputs": [{"name": "x"}], "outputs": []},
        {"name": "m", "inputs": [{"name": "x", "datatype": "BF16", "shape": []}], "outputs": []},
        {"name": "m", "inputs": [{"name": "x", "datatype": [], "shape": []}], "outputs": []},
        {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": ["a"]}], "outputs": []},
        {"name": "m", "inputs": [], "outputs": [], "parameters": 3},
    ],
)
def test_metadata_that_is_none_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(MalformedRequest, match="the metadata cannot be read"):
        ModelMetadata.from_json(value)


def test_inputs_that_fit_pass() -> None:
    check_inputs({"x": ROW}, METADATA.inputs)
    check_inputs({"x": ROW, "text": bytes_tensor([b"a"])}, METADATA.inputs)


@pytest.mark.parametrize(
    ("tensors", "sentence", "param"),
    [
        ({}, "the input x is missing", "x"),
        ({"x": ROW, "y": ROW}, "there is no input 'y'; the inputs are x, text", "y"),
        ({"x": ROW.astype(np.float64)}, "x must be FP32, not FP64", "x"),
        ({"x": np.ones((1, 3), np.float32)}, r"x must have the shape \[-1, 2\], not \[1, 3\]", "x"),
        ({"x": np.ones(2, np.float32)}, r"x must have the shape \[-1, 2\], not \[2\]", "x"),
        ({"x": np.ones((0, 2), np.float32)}, "x is empty", "x"),
        ({"x": np.array([[1, np.nan]], np.float32)}, "x has values that are NaN or infinite", "x"),
        ({"x": np.array([[-np.inf, 1]], np.float32)}, "x has values that are NaN or infinite", "x"),
        ({"x": ROW, "text": ROW}, "text must be BYTES, not FP32", "text"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tensors: dict[str, Array], sentence: str, param: str) -> None:
    with pytest.raises(InvalidValue, match=sentence) as refused:
        check_inputs(tensors, METADATA.inputs)
    assert refused.value.param == param


def test_an_output_is_taken_and_others_are_passed_over() -> None:
    assert take_output({"y": ROW, "x": ROW}, X) is ROW
    with pytest.raises(MalformedRequest, match="the output x is missing"):
        take_output({"y": ROW}, X)
    with pytest.raises(InvalidValue, match="x must be FP32"):
        take_output({"x": ROW.astype(np.int32)}, X)


def test_outputs_that_do_not_exist_are_refused() -> None:
    check_outputs(InferRequest(inputs={}, outputs=(RequestedOutput(name="x"),)), METADATA.outputs)
    with pytest.raises(InvalidValue, match="there is no output 'y'; the outputs are x"):
        check_outputs(InferRequest(inputs={}, outputs=(RequestedOutput(name="y"),)), METADATA.outputs)


def test_the_raw_form_is_one_text() -> None:
    one_text = ModelMetadata(name="m", inputs=(TEXT,), outputs=())
    assert raw_request(b"a prompt", one_text).inputs["text"].tolist() == [b"a prompt"]
    with pytest.raises(NotSupported, match="m takes more than one text"):
        raw_request(b"a prompt", METADATA)
