"""The decoder on the wire: `latents` FP32 [B, H/8, W/8, C] to `images`, UINT8 [B, H, W, 3] or BYTES [B] of files."""

from __future__ import annotations

import re

from triptych.contract import Decoded, DecodeRequest, DecoderIdentity, ImageFormat, UInt8
from triptych.errors import InvalidValue
from triptych.wire.datatypes import Array, bytes_tensor
from triptych.wire.identities import from_parameters, to_parameters
from triptych.wire.metadata import ANY, ModelMetadata, TensorSpec, check_inputs, take_output
from triptych.wire.open_inference import InferRequest, InferResponse, RequestedOutput
from triptych.wire.parameters import Parameters
from triptych.wire.texts import decode_texts, encode_texts

MODEL = "decoder"

_DIGEST = re.compile(r"[0-9a-f]{64}")


def to_metadata(identity: DecoderIdentity) -> ModelMetadata:
    return ModelMetadata(
        name=MODEL,
        inputs=_inputs(identity),
        outputs=(TensorSpec(name="images", datatype="UINT8", shape=(ANY, ANY, ANY, 3)),),
        parameters=to_parameters(identity),
    )


def from_metadata(metadata: ModelMetadata) -> DecoderIdentity:
    return from_parameters(DecoderIdentity, metadata.parameters)


def write_request(request: DecodeRequest) -> InferRequest:
    """Raises InvalidValue for a text that is not valid Unicode."""
    inputs: dict[str, Array] = {"latents": request.latents}
    if request.image_texts:
        inputs["image_text"] = encode_texts("image_text", request.image_texts)
    for name, pixels in (("original", request.original), ("paste_mask", request.paste_mask)):
        if pixels is not None:
            inputs[name] = pixels
    format_ = {} if request.image_format is None else {"image_format": str(request.image_format)}
    return InferRequest(
        inputs=inputs,
        parameters={**format_, **({"preview": True} if request.preview else {})},
        outputs=(RequestedOutput(name="images"),),
    )


def read_request(request: InferRequest, identity: DecoderIdentity) -> DecodeRequest:
    """Raises InvalidValue where the request does not fit the model."""
    check_inputs(request.inputs, _inputs(identity))
    parameters = Parameters(request.parameters)
    name = parameters.choice("image_format", list(ImageFormat))
    preview = parameters.flag("preview", default=False)
    parameters.finish()
    if name is not None and not request.wants_binary("images"):
        raise InvalidValue("encoded images have no JSON form: ask for images with binary_data true", param="images")
    latents = request.inputs["latents"]
    return DecodeRequest(
        latents=latents,
        image_format=None if name is None else ImageFormat(name),
        image_texts=_read_texts(request.inputs.get("image_text"), rows=len(latents)),
        original=request.inputs.get("original"),
        paste_mask=request.inputs.get("paste_mask"),
        preview=preview,
    )


def write_response(decoded: Decoded) -> InferResponse:
    images = bytes_tensor(decoded.images) if isinstance(decoded.images, tuple) else decoded.images
    told = {"pixels_sha256": decoded.pixels_sha256, "float32_rows": decoded.float32_rows}
    parameters = {name: ",".join(map(str, values)) for name, values in told.items() if values}
    return InferResponse(model_name=MODEL, outputs={"images": images}, parameters=parameters)


def read_response(response: InferResponse, request: DecodeRequest) -> Decoded:
    """Raises MalformedRequest or InvalidValue where this is no answer to the request."""
    rows = len(request.latents)
    images: UInt8 | tuple[bytes, ...]
    if request.image_format is None:
        spec = TensorSpec(name="images", datatype="UINT8", shape=(rows, ANY, ANY, 3))
        images = take_output(response.outputs, spec)
    else:
        images = tuple(take_output(response.outputs, TensorSpec(name="images", datatype="BYTES", shape=(rows,))))
    return Decoded(images=images, pixels_sha256=_read_digests(response, rows), float32_rows=_read_float32_rows(response, rows))


def _read_digests(response: InferResponse, rows: int) -> tuple[str, ...]:
    """None from a decoder of somebody else, who knows nothing of them."""
    text = response.parameters.get("pixels_sha256")
    if text is None:
        return ()
    digests = tuple(str(text).split(","))
    if len(digests) != rows or not all(map(_DIGEST.fullmatch, digests)):
        raise InvalidValue(f"pixels_sha256 must be {rows} SHA-256 in hexadecimal", param="pixels_sha256")
    return digests


def _read_float32_rows(response: InferResponse, rows: int) -> tuple[int, ...]:
    text = response.parameters.get("float32_rows")
    if text is None:
        return ()
    places = [int(place) if place.isdecimal() else rows for place in str(text).split(",")]
    if max(places) >= rows:
        raise InvalidValue(f"float32_rows must be places of the {rows} pictures, from 0 on", param="float32_rows")
    return tuple(places)


def _inputs(identity: DecoderIdentity) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(name="latents", datatype="FP32", shape=(ANY, ANY, ANY, identity.latent_channels)),
        TensorSpec(name="image_text", datatype="BYTES", shape=(ANY,), optional=True),
        TensorSpec(name="original", datatype="UINT8", shape=(ANY, ANY, ANY, 3), optional=True),
        TensorSpec(name="paste_mask", datatype="UINT8", shape=(ANY, ANY, ANY), optional=True),
    )


def _read_texts(texts: Array | None, *, rows: int) -> tuple[str, ...]:
    if texts is None:
        return ()
    if len(texts) not in (1, rows):
        raise InvalidValue(f"image_text has {len(texts)} rows; with {rows} latents it must have {rows} or 1", param="image_text")
    decoded = decode_texts("image_text", texts)
    return decoded if len(decoded) == rows else decoded * rows
