"""The text encoder on the wire: `prompt` BYTES [B] to `context` FP32 [B, T, D]."""

from __future__ import annotations

from triptych.contract import Encoded, EncodeRequest, TextEncoderIdentity
from triptych.wire.identities import from_parameters, to_parameters
from triptych.wire.metadata import ANY, ModelMetadata, TensorSpec, check_inputs, take_output
from triptych.wire.open_inference import InferRequest, InferResponse, RequestedOutput
from triptych.wire.parameters import Parameters
from triptych.wire.texts import decode_texts, encode_texts

MODEL = "text_encoder"

INPUTS = (TensorSpec(name="prompt", datatype="BYTES", shape=(ANY,)),)


def to_metadata(identity: TextEncoderIdentity) -> ModelMetadata:
    context = (ANY, identity.context_length if identity.max_prompt_chunks == 1 else ANY, identity.context_width)
    return ModelMetadata(
        name=MODEL,
        inputs=INPUTS,
        outputs=(TensorSpec(name="context", datatype="FP32", shape=context),),
        parameters=to_parameters(identity),
    )


def from_metadata(metadata: ModelMetadata) -> TextEncoderIdentity:
    return from_parameters(TextEncoderIdentity, metadata.parameters)


def write_request(request: EncodeRequest) -> InferRequest:
    """Raises InvalidValue for a prompt that is not valid Unicode."""
    return InferRequest(
        inputs={"prompt": encode_texts("prompt", request.prompts)},
        # A text encoder that has never heard of long prompts is not told of them in vain.
        parameters={"truncate": request.truncate} | ({"long_prompt": True} if request.long_prompt else {}),
        outputs=(RequestedOutput(name="context"),),
    )


def read_request(request: InferRequest, identity: TextEncoderIdentity) -> EncodeRequest:
    """Raises InvalidValue where the request does not fit the model."""
    check_inputs(request.inputs, INPUTS)
    parameters = Parameters(request.parameters)
    truncate = parameters.flag("truncate", default=False)
    long_prompt = parameters.flag("long_prompt", default=False)
    parameters.finish()
    prompts = decode_texts("prompt", request.inputs["prompt"])
    return EncodeRequest(prompts=prompts, truncate=truncate, long_prompt=long_prompt)


def write_response(encoded: Encoded) -> InferResponse:
    warnings = {"warnings": "\n".join(encoded.warnings)} if encoded.warnings else {}
    return InferResponse(model_name=MODEL, outputs={"context": encoded.context}, parameters=warnings)


def read_response(response: InferResponse, request: EncodeRequest) -> Encoded:
    """Raises MalformedRequest or InvalidValue where this is no answer to the request."""
    rows = len(request.prompts)
    context = take_output(response.outputs, TensorSpec(name="context", datatype="FP32", shape=(rows, ANY, ANY)))
    return Encoded(context=context, warnings=tuple(str(response.parameters.get("warnings", "")).splitlines()))
