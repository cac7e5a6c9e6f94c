"""The diffusion stage on the wire: contexts and seeds to `latents` FP32 [B, H/8, W/8, C]."""

from __future__ import annotations

from collections.abc import Iterable

from triptych.contract import Denoised, DenoiseRequest, DiffusionIdentity
from triptych.errors import NotSupported
from triptych.wire.datatypes import Array
from triptych.wire.identities import from_parameters, to_parameters
from triptych.wire.metadata import ANY, ModelMetadata, TensorSpec, check_inputs, take_output
from triptych.wire.open_inference import InferRequest, InferResponse, RequestedOutput
from triptych.wire.parameters import Parameters

MODEL = "diffusion"

MAX_NUM_STEPS = 1000
MAX_GUIDANCE_SCALE = 100.0
MAX_SIDE = 8192

# A denoising that stops half-way and goes on elsewhere is part of the protocol's design, not yet of this version.
_INPUTS_TO_RESUME = ("latents", "sampler_state", "position")
_PARAMETERS_OF_FRAMES = ("progress_every", "previews", "state_key")


def to_metadata(identity: DiffusionIdentity) -> ModelMetadata:
    return ModelMetadata(
        name=MODEL,
        inputs=_inputs(identity),
        outputs=(TensorSpec(name="latents", datatype="FP32", shape=_latents(identity)),),
        parameters=to_parameters(identity),
    )


def from_metadata(metadata: ModelMetadata) -> DiffusionIdentity:
    return from_parameters(DiffusionIdentity, metadata.parameters)


def write_request(request: DenoiseRequest) -> InferRequest:
    inputs: dict[str, Array | None] = {
        "context": request.context,
        "unconditional_context": request.unconditional_context,
        "seed": request.seeds,
        "initial_noise": request.initial_noise,
    }
    return InferRequest(
        inputs={name: array for name, array in inputs.items() if array is not None},
        parameters={
            "num_steps": request.num_steps,
            "guidance_scale": request.guidance_scale,
            "sampler": request.sampler,
            "width": request.width,
            "height": request.height,
        },
        outputs=(RequestedOutput(name="latents"),),
    )


def read_request(request: InferRequest, identity: DiffusionIdentity) -> DenoiseRequest:
    """What is asked for; parameters that are absent have the model's own defaults. `contract.check_denoise` is the stage's part.

    Raises:
        InvalidValue: A tensor or parameter is not what the metadata says.
        NotSupported: It asks for frames, or to resume.
    """
    _refuse_to_resume(request.inputs)
    check_inputs(request.inputs, _inputs(identity))
    parameters = Parameters(request.parameters, later=_PARAMETERS_OF_FRAMES)
    width, height = identity.sizes[0]
    denoise = DenoiseRequest(
        context=request.inputs["context"],
        unconditional_context=request.inputs.get("unconditional_context"),
        seeds=request.inputs["seed"],
        width=parameters.integer("width", default=width, minimum=1, maximum=MAX_SIDE),
        height=parameters.integer("height", default=height, minimum=1, maximum=MAX_SIDE),
        sampler=parameters.text("sampler", default=identity.samplers[0]),
        num_steps=parameters.integer("num_steps", default=identity.default_num_steps, minimum=1, maximum=MAX_NUM_STEPS),
        guidance_scale=parameters.number(
            "guidance_scale", default=identity.default_guidance_scale, minimum=0, maximum=MAX_GUIDANCE_SCALE
        ),
        initial_noise=request.inputs.get("initial_noise"),
    )
    parameters.finish()
    return denoise


def write_response(denoised: Denoised) -> InferResponse:
    return InferResponse(model_name=MODEL, outputs={"latents": denoised.latents})


def read_response(response: InferResponse, request: DenoiseRequest) -> Denoised:
    """Raises MalformedRequest or InvalidValue where this is no answer to the request."""
    rows = len(request.seeds)
    spec = TensorSpec(name="latents", datatype="FP32", shape=(rows, ANY, ANY, ANY))
    return Denoised(latents=take_output(response.outputs, spec))


def _inputs(identity: DiffusionIdentity) -> tuple[TensorSpec, ...]:
    context = (ANY, identity.context_length, identity.context_width)
    return (
        TensorSpec(name="context", datatype="FP32", shape=context),
        TensorSpec(name="unconditional_context", datatype="FP32", shape=context, optional=True),
        TensorSpec(name="seed", datatype="UINT64", shape=(ANY,)),
        TensorSpec(name="initial_noise", datatype="FP32", shape=_latents(identity), optional=True),
    )


def _latents(identity: DiffusionIdentity) -> tuple[int, ...]:
    return (ANY, ANY, ANY, identity.latent_channels)


def _refuse_to_resume(names: Iterable[str]) -> None:
    for name in names:
        if name in _INPUTS_TO_RESUME:
            raise NotSupported(f"the input {name} is for resuming, which is not supported by this version", param=name)
