"""The image encoder on the wire: `images` UINT8 [B, H, W, 3] to `latents` FP32 [B, H/8, W/8, C]."""

from __future__ import annotations

from triptych.contract import EncodedImages, EncodeImagesRequest, ImageEncoderIdentity
from triptych.wire.datatypes import Array
from triptych.wire.identities import from_parameters, to_parameters
from triptych.wire.metadata import ANY, ModelMetadata, TensorSpec, check_inputs, take_output
from triptych.wire.open_inference import InferRequest, InferResponse, RequestedOutput
from triptych.wire.parameters import Parameters

MODEL = "image_encoder"

_INPUTS = (
    TensorSpec(name="images", datatype="UINT8", shape=(ANY, ANY, ANY, 3)),
    TensorSpec(name="seed", datatype="UINT64", shape=(ANY,), optional=True),
    TensorSpec(name="mask", datatype="UINT8", shape=(ANY, ANY, ANY), optional=True),
)


def to_metadata(identity: ImageEncoderIdentity) -> ModelMetadata:
    return ModelMetadata(
        name=MODEL,
        inputs=_INPUTS,
        outputs=(TensorSpec(name="latents", datatype="FP32", shape=(ANY, ANY, ANY, identity.latent_channels)),),
        parameters=to_parameters(identity),
    )


def from_metadata(metadata: ModelMetadata) -> ImageEncoderIdentity:
    return from_parameters(ImageEncoderIdentity, metadata.parameters)


def write_request(request: EncodeImagesRequest) -> InferRequest:
    inputs: dict[str, Array] = {"images": request.images}
    if request.seeds is not None:
        inputs["seed"] = request.seeds
    if request.mask is not None:
        inputs["mask"] = request.mask
    return InferRequest(inputs=inputs, outputs=(RequestedOutput(name="latents"),))


def read_request(request: InferRequest, identity: ImageEncoderIdentity) -> EncodeImagesRequest:
    """Raises InvalidValue where the request does not fit the model."""
    check_inputs(request.inputs, _INPUTS)
    Parameters(request.parameters).finish()
    return EncodeImagesRequest(images=request.inputs["images"], seeds=request.inputs.get("seed"), mask=request.inputs.get("mask"))


def write_response(encoded: EncodedImages) -> InferResponse:
    return InferResponse(model_name=MODEL, outputs={"latents": encoded.latents})


def read_response(response: InferResponse, request: EncodeImagesRequest) -> EncodedImages:
    """Raises MalformedRequest or InvalidValue where this is no answer to the request."""
    spec = TensorSpec(name="latents", datatype="FP32", shape=(len(request.images), ANY, ANY, ANY))
    return EncodedImages(latents=take_output(response.outputs, spec))
