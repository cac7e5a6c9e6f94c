from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.fakes import DECODER
from tests.wire.passage import LATENTS, assert_same, back_over_the_wire, over_the_wire
from triptych.contract import Decoded, DecodeRequest, ImageFormat
from triptych.errors import InvalidValue, MalformedRequest
from triptych.wire import decoder
from triptych.wire.datatypes import bytes_tensor
from triptych.wire.open_inference import InferRequest, InferResponse, RequestedOutput


@pytest.mark.parametrize(
    "request_",
    [
        DecodeRequest(latents=LATENTS),
        DecodeRequest(latents=LATENTS, image_format=ImageFormat.WEBP),
        DecodeRequest(latents=LATENTS, preview=True),
        DecodeRequest(latents=LATENTS, image_format=ImageFormat.PNG, image_texts=("eins", "zwei €")),
        DecodeRequest(latents=LATENTS, original=np.ones((1, 64, 96, 3), np.uint8), paste_mask=np.ones((2, 64, 96), np.uint8)),
    ],
)
def test_latents_arrive_at_the_decoder(request_: DecodeRequest) -> None:
    assert_same(decoder.read_request(over_the_wire(decoder.write_request(request_)), DECODER), request_)


def test_one_text_is_every_pictures_text() -> None:
    request = InferRequest(inputs={"latents": LATENTS, "image_text": bytes_tensor([b"same"])})
    assert decoder.read_request(request, DECODER).image_texts == ("same", "same")


@pytest.mark.parametrize(("pixels_sha256", "float32_rows"), [((), ()), (("a" * 64, "0" * 64), (1,)), ((), (0, 1))])
@pytest.mark.parametrize(
    ("image_format", "images"),
    [(None, np.arange(2 * 64 * 96 * 3, dtype=np.uint8).reshape(2, 64, 96, 3)), (ImageFormat.PNG, (b"\x89PNG\0", b"\x89PNG\1\0"))],
)
def test_pictures_arrive(
    image_format: ImageFormat | None, images: Any, pixels_sha256: tuple[str, ...], float32_rows: tuple[int, ...]
) -> None:
    request = DecodeRequest(latents=LATENTS, image_format=image_format)
    decoded = Decoded(images=images, pixels_sha256=pixels_sha256, float32_rows=float32_rows)
    assert_same(decoder.read_response(back_over_the_wire(decoder.write_response(decoded)), request), decoded)


@pytest.mark.parametrize(
    ("image_format", "images", "sentence"),
    [
        (None, bytes_tensor([b"a", b"b"]), "images must be UINT8, not BYTES"),
        (ImageFormat.PNG, np.zeros((2, 8, 8, 3), np.uint8), "images must be BYTES, not UINT8"),
        (ImageFormat.PNG, bytes_tensor([b"a"]), r"images must have the shape \[2\], not \[1\]"),
        (None, np.zeros((2, 8, 8, 4), np.uint8), r"images must have the shape \[2, -1, -1, 3\]"),
    ],
)
def test_pictures_that_are_no_answer_are_refused(image_format: Any, images: Any, sentence: str) -> None:
    response = InferResponse(model_name="decoder", outputs={"images": images})
    with pytest.raises(InvalidValue, match=sentence):
        decoder.read_response(response, DecodeRequest(latents=LATENTS, image_format=image_format))


@pytest.mark.parametrize("digests", ["a" * 64, ",".join(["A" * 64] * 2), "", "x,y", 1.5, True])
def test_digests_that_are_none_are_refused(digests: Any) -> None:
    response = InferResponse(
        model_name="decoder", outputs={"images": bytes_tensor([b"a", b"b"])}, parameters={"pixels_sha256": digests}
    )
    with pytest.raises(InvalidValue, match="pixels_sha256 must be 2 SHA-256 in hexadecimal"):
        decoder.read_response(response, DecodeRequest(latents=LATENTS, image_format=ImageFormat.PNG))


@pytest.mark.parametrize("rows", ["2", "0,1,2", "-1", "", "x", 1.5, True])
def test_places_of_no_picture_are_refused(rows: Any) -> None:
    response = InferResponse(
        model_name="decoder", outputs={"images": bytes_tensor([b"a", b"b"])}, parameters={"float32_rows": rows}
    )
    with pytest.raises(InvalidValue, match="float32_rows must be places of the 2 pictures, from 0 on"):
        decoder.read_response(response, DecodeRequest(latents=LATENTS, image_format=ImageFormat.PNG))


def test_an_answer_without_pictures_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="the output images is missing"):
        decoder.read_response(InferResponse(model_name="decoder", outputs={}), DecodeRequest(latents=LATENTS))


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        ({"latents": LATENTS[..., :3]}, {}, r"latents must have the shape \[-1, -1, -1, 4\]"),
        ({"image_text": bytes_tensor([b"a"] * 3)}, {}, "image_text has 3 rows; with 2 latents it must have 2 or 1"),
        ({"image_text": bytes_tensor([b"\xff"])}, {}, "image_text must be UTF-8 text"),
        ({"latents": np.full_like(LATENTS, np.inf)}, {}, "latents has values that are NaN or infinite"),
        ({}, {"image_format": "gif"}, "image_format must be one of png, jpeg, webp"),
        ({}, {"quality": 9}, "there is no parameter 'quality'; there are image_format"),
    ],
)
def test_latents_that_do_not_fit_are_refused(inputs: Any, parameters: Any, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        decoder.read_request(InferRequest(inputs={"latents": LATENTS, **inputs}, parameters=parameters), DECODER)


def test_files_do_not_travel_as_json() -> None:
    request = InferRequest(
        inputs={"latents": LATENTS},
        parameters={"image_format": "png"},
        outputs=(RequestedOutput(name="images", binary=False),),
    )
    with pytest.raises(InvalidValue, match="encoded images have no JSON form"):
        decoder.read_request(request, DECODER)


def test_metadata_says_who_it_is() -> None:
    assert decoder.from_metadata(decoder.to_metadata(DECODER)) == DECODER
