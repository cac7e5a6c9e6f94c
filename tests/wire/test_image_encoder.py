from __future__ import annotations

import numpy as np
import pytest

from tests.fakes import IMAGE_ENCODER
from tests.wire.passage import LATENTS, assert_same, back_over_the_wire, over_the_wire
from triptych.contract import EncodedImages, EncodeImagesRequest
from triptych.errors import InvalidValue
from triptych.wire import image_encoder
from triptych.wire.metadata import ModelMetadata
from triptych.wire.open_inference import InferRequest, InferResponse

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)


@pytest.mark.parametrize("seeds", [None, np.array([1, 2**64 - 1], np.uint64)])
@pytest.mark.parametrize("mask", [None, IMAGES[:1, ..., 0].copy()])
def test_pictures_arrive_at_the_image_encoder(seeds: np.ndarray | None, mask: np.ndarray | None) -> None:
    request = EncodeImagesRequest(images=IMAGES, seeds=seeds, mask=mask)
    assert_same(image_encoder.read_request(over_the_wire(image_encoder.write_request(request)), IMAGE_ENCODER), request)


def test_their_latents_arrive() -> None:
    encoded, request = EncodedImages(latents=LATENTS), EncodeImagesRequest(images=IMAGES)
    assert_same(image_encoder.read_response(back_over_the_wire(image_encoder.write_response(encoded)), request), encoded)


def test_it_says_who_it_is() -> None:
    metadata = image_encoder.to_metadata(IMAGE_ENCODER)
    assert image_encoder.from_metadata(ModelMetadata.from_json(metadata.to_json())) == IMAGE_ENCODER


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        ({"images": IMAGES[..., :1]}, {}, r"images must have the shape \[-1, -1, -1, 3\]"),
        ({"images": IMAGES.astype(np.float32)}, {}, "images must be UINT8, not FP32"),
        ({}, {}, "the input images is missing"),
        ({"images": IMAGES, "latents": IMAGES}, {}, "there is no input 'latents'; the inputs are images, seed, mask"),
        ({"images": IMAGES}, {"strength": 0.5}, "strength"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: dict[str, np.ndarray], parameters: dict[str, float], sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        image_encoder.read_request(InferRequest(inputs=inputs, parameters=parameters), IMAGE_ENCODER)


def test_latents_of_other_pictures_are_no_answer() -> None:
    response = InferResponse(model_name="image_encoder", outputs={"latents": LATENTS[:1]})
    with pytest.raises(InvalidValue, match=r"latents must have the shape \[2, -1, -1, -1\]"):
        image_encoder.read_response(response, EncodeImagesRequest(images=IMAGES))
