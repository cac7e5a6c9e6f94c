from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import TEXT_ENCODER
from tests.wire.passage import CONTEXT, assert_same, back_over_the_wire, over_the_wire
from triptych.contract import Encoded, EncodeRequest
from triptych.errors import InvalidValue
from triptych.wire import text_encoder
from triptych.wire.datatypes import bytes_tensor
from triptych.wire.open_inference import InferRequest


@pytest.mark.parametrize(
    "request_",
    [
        EncodeRequest(prompts=("ein Bär", ""), truncate=True),
        EncodeRequest(prompts=("a",)),
        EncodeRequest(prompts=("a", "b"), long_prompt=True),
    ],
)
def test_prompts_arrive(request_: EncodeRequest) -> None:
    assert text_encoder.read_request(over_the_wire(text_encoder.write_request(request_)), TEXT_ENCODER) == request_


@pytest.mark.parametrize("warnings", [(), ("one",), ("one", "two")])
def test_contexts_arrive_with_their_warnings(warnings: tuple[str, ...]) -> None:
    encoded = Encoded(context=CONTEXT, warnings=warnings)
    response = back_over_the_wire(text_encoder.write_response(encoded))
    assert_same(text_encoder.read_response(response, EncodeRequest(prompts=("a", "b"))), encoded)


def test_half_a_surrogate_pair_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidValue, match="prompt has a text that is not valid Unicode"):
        text_encoder.write_request(EncodeRequest(prompts=("\ud83d",)))


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        ({"prompt": bytes_tensor([b"\xff"])}, {}, "prompt must be UTF-8 text"),
        ({"prompt": bytes_tensor([b"a"], [1, 1])}, {}, r"prompt must have the shape \[-1\]"),
        ({"prompt": bytes_tensor([])}, {}, "prompt is empty"),
        ({"prompt": bytes_tensor([b"a"])}, {"truncate": "yes"}, "truncate must be true or false"),
        ({"prompt": bytes_tensor([b"a"])}, {"long_prompt": 2}, "long_prompt must be true or false"),
        ({"prompt": bytes_tensor([b"a"])}, {"cut": True}, "there is no parameter 'cut'; there are truncate, long_prompt"),
        ({"tokens": np.zeros((1, 77), np.int32)}, {}, "there is no input 'tokens'; the inputs are prompt"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(inputs: Any, parameters: Any, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        text_encoder.read_request(InferRequest(inputs=inputs, parameters=parameters), TEXT_ENCODER)


def test_contexts_of_another_number_are_no_answer() -> None:
    response = text_encoder.write_response(Encoded(context=CONTEXT))
    with pytest.raises(InvalidValue, match=r"context must have the shape \[3, -1, -1\]"):
        text_encoder.read_response(response, EncodeRequest(prompts=("a", "b", "c")))


def test_contexts_of_long_prompts_arrive() -> None:
    encoded = Encoded(context=CONTEXT.repeat(3, axis=1))
    response = back_over_the_wire(text_encoder.write_response(encoded))
    assert_same(text_encoder.read_response(response, EncodeRequest(prompts=("a", "b"), long_prompt=True)), encoded)


def test_a_text_encoder_that_is_not_asked_for_long_prompts_need_not_know_of_them() -> None:
    assert text_encoder.write_request(EncodeRequest(prompts=("a",))).parameters == {"truncate": False}


@pytest.mark.parametrize(("chunks", "length"), [(1, 77), (3, -1)])
def test_metadata_says_how_long_contexts_are(chunks: int, length: int) -> None:
    metadata = text_encoder.to_metadata(replace(TEXT_ENCODER, max_prompt_chunks=chunks))
    assert metadata.outputs[0].shape == (-1, length, 768)
    assert metadata.parameters["max_prompt_chunks"] == chunks


def test_an_older_text_encoder_joins_nothing() -> None:
    metadata = text_encoder.to_metadata(TEXT_ENCODER)
    older = {name: value for name, value in metadata.parameters.items() if name != "max_prompt_chunks"}
    assert text_encoder.from_metadata(replace(metadata, parameters=older)).max_prompt_chunks == 1


def test_metadata_says_who_it_is() -> None:
    assert text_encoder.from_metadata(text_encoder.to_metadata(TEXT_ENCODER)) == TEXT_ENCODER
