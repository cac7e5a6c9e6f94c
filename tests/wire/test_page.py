"""docs/wire.md says what is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import DECODER, DIFFUSION, IMAGE_ENCODER, TEXT_ENCODER
from triptych.contract import Memory
from triptych.errors import CallerError, StageError
from triptych.wire import decoder, diffusion, image_encoder, text_encoder
from triptych.wire.headers import REQUEST_ID_HEADER, TIMEOUT_HEADER
from triptych.wire.identities import memory_parameters
from triptych.wire.metadata import ModelMetadata
from triptych.wire.open_inference import HEADER_LENGTH, decode_request

IN_INT8 = replace(DIFFUSION.numerics, precision="int8", float_precision="bfloat16", quantized="9f86d081")
MEMORY_PARAMETERS = memory_parameters(Memory(most_bytes=2, picture_bytes={(64, 64): 1}, call_bytes=1))

MODELS = [
    text_encoder.to_metadata(TEXT_ENCODER),
    diffusion.to_metadata(replace(DIFFUSION, takes_masked_image=True, numerics=IN_INT8), evaluations_outstanding=0),
    decoder.to_metadata(DECODER),
    image_encoder.to_metadata(IMAGE_ENCODER),
]


@pytest.fixture(scope="module")
def page() -> str:
    return Path(__file__).resolve().parents[2].joinpath("docs", "wire.md").read_text(encoding="utf-8")


def code(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", page))


@pytest.mark.parametrize("metadata", MODELS, ids=lambda metadata: metadata.name)
def test_it_names_every_tensor_and_everything_that_a_model_says_of_itself(page: str, metadata: ModelMetadata) -> None:
    names = {tensor.name for tensor in (*metadata.inputs, *metadata.outputs)} | set(metadata.parameters) | {metadata.name}
    assert names - code(page) == set()


def test_it_names_no_parameter_of_metadata_that_does_not_exist(page: str) -> None:
    (section,) = re.findall(r"## Who a model is\n(.*?)\n## ", page, re.DOTALL)
    named = {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {name for metadata in MODELS for name in metadata.parameters} | MEMORY_PARAMETERS.keys()


def test_it_names_every_parameter_of_a_request(page: str) -> None:
    sources = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (text_encoder, diffusion, decoder)]
    read = {name for source in sources for name in re.findall(r'parameters\.\w+\(\s*"(\w+)"', source)}
    assert {"truncate", "num_steps", "image_format"} <= read
    assert read - code(page) == set()


def test_it_names_every_status(page: str) -> None:
    (section,) = re.findall(r"## Errors\n(.*?)\n## ", page, re.DOTALL)
    named = {int(status) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for status in row.split(", ")}
    kinds = [*CallerError.__subclasses__(), *StageError.__subclasses__()]
    raised_elsewhere = {406, 409}  # by the gateway; and by resuming, which is to come
    assert named == {kind.status for kind in kinds} - raised_elsewhere | {500}


def test_its_headers_are_ours(page: str) -> None:
    assert {HEADER_LENGTH, REQUEST_ID_HEADER, TIMEOUT_HEADER} <= code(page)


def test_its_example_of_a_request_is_one(page: str) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    tensors = bytes(sum(tensor["parameters"]["binary_data_size"] for tensor in json.loads(example)["inputs"]))
    request = decode_request(example.encode() + tensors, len(example))
    read = diffusion.read_request(request, DIFFUSION)
    assert (read.num_steps, read.guidance_scale, request.binary_output, request.id) == (25, 7.5, True, "mine")


def test_its_bodies_for_curl_are_requests(page: str) -> None:
    (body,) = re.findall(r"-d '(.*?)'", page)
    assert text_encoder.read_request(decode_request(body.encode(), None), TEXT_ENCODER).prompts == ("a red circle",)
