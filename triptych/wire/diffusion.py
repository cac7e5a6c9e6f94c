"""The diffusion stage on the wire: contexts and seeds to `latents` FP32 [B, H/8, W/8, C], at once or in frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, assert_never

from triptych.contract import (
    Denoised,
    DenoiseEvent,
    DenoiseRequest,
    DenoiseState,
    DiffusionIdentity,
    Priority,
    Progress,
    State,
)
from triptych.errors import InvalidValue, MalformedRequest
from triptych.wire.datatypes import Array
from triptych.wire.frames import Frame, FrameReader, Kind
from triptych.wire.identities import from_parameters, to_parameters
from triptych.wire.metadata import ANY, ModelMetadata, TensorSpec, check_inputs, take_output
from triptych.wire.open_inference import InferRequest, InferResponse, RequestedOutput, Scalar
from triptych.wire.parameters import MAX_TEXT_CHARACTERS, Parameters

MODEL = "diffusion"

MAX_NUM_STEPS = 1000
MAX_GUIDANCE_SCALE = 100.0
MAX_SIDE = 8192

MAX_NUM_RESAMPLES = 100

MAX_EVALUATIONS = 2**20
"""More than any plan has: some samplers evaluate a step more than once."""

MAX_STATE_ARRAYS = 16
"""More than any sampler keeps between two evaluations."""

FRAMES_PARAMETER = "frames"
"""What metadata say of a model that answers in frames."""

OUTSTANDING_PARAMETER = "evaluations_outstanding"
"""What metadata say of the work that a stage has at the moment; no part of who it is."""

_INPUTS_TO_RESUME = ("latents", "sampler_state", "position")


def to_metadata(identity: DiffusionIdentity, *, evaluations_outstanding: int | None = None) -> ModelMetadata:
    busy = {} if evaluations_outstanding is None else {OUTSTANDING_PARAMETER: evaluations_outstanding}
    return ModelMetadata(
        name=MODEL,
        inputs=_inputs(identity, context_length=identity.context_length if identity.max_prompt_chunks == 1 else ANY),
        outputs=(TensorSpec(name="latents", datatype="FP32", shape=(ANY, ANY, ANY, identity.latent_channels)),),
        parameters={**to_parameters(identity), FRAMES_PARAMETER: True, **busy},
    )


def from_metadata(metadata: ModelMetadata) -> DiffusionIdentity:
    return from_parameters(DiffusionIdentity, metadata.parameters)


def offers_frames(metadata: ModelMetadata) -> bool:
    return metadata.parameters.get(FRAMES_PARAMETER) is True


def evaluations_outstanding(metadata: ModelMetadata) -> int | None:
    """Evaluations of the network that a stage says it has before it; None where it says nothing of that."""
    number = metadata.parameters.get(OUTSTANDING_PARAMETER)
    return number if type(number) is int and number >= 0 else None


def write_request(request: DenoiseRequest) -> InferRequest:
    inputs: dict[str, Array | None] = {
        "context": request.context,
        "unconditional_context": request.unconditional_context,
        "seed": request.seeds,
        "initial_noise": request.initial_noise,
        "init_latents": request.init_latents,
        "mask": request.mask,
        "masked_image_latents": request.masked_image_latents,
    }
    parameters: dict[str, Scalar | None] = {
        "num_steps": request.num_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_start": request.guidance_start if request.guidance_start != 0 else None,
        "guidance_end": request.guidance_end if request.guidance_end != 1 else None,
        "cache_interval": request.cache_interval if request.cache_interval != 1 else None,
        "sampler": request.sampler,
        "width": request.width,
        "height": request.height,
        "strength": request.strength if request.strength != 1 else None,
        "num_resamples": request.num_resamples if request.num_resamples != 1 else None,
        "progress_every": request.progress_every,
        "previews": request.previews or None,
        "request_priority": str(request.priority) if request.priority != Priority.NORMAL else None,
        "finish_here": request.finish_here or None,
    }
    if request.resume is not None:
        inputs |= _tensors_of(request.resume)
        parameters["state_key"] = request.resume.state_key
    return InferRequest(
        inputs={name: array for name, array in inputs.items() if array is not None},
        parameters={name: value for name, value in parameters.items() if value is not None},
        outputs=(RequestedOutput(name="latents"),),
    )


def read_request(request: InferRequest, identity: DiffusionIdentity) -> DenoiseRequest:
    """What is asked for; parameters that are absent have the model's own defaults. `contract.check_denoise` is the stage's part.

    Raises:
        InvalidValue: A tensor or parameter is not what the metadata says, or a state is not complete.
    """
    check_inputs(request.inputs, _inputs(identity, context_length=_length_to_expect(request.inputs.get("context"), identity)))
    parameters = Parameters(request.parameters)
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
        guidance_start=parameters.number("guidance_start", default=0.0, minimum=0, maximum=1),
        guidance_end=parameters.number("guidance_end", default=1.0, minimum=0, maximum=1),
        cache_interval=parameters.integer("cache_interval", default=1, minimum=1, maximum=MAX_NUM_STEPS),
        initial_noise=request.inputs.get("initial_noise"),
        init_latents=request.inputs.get("init_latents"),
        mask=request.inputs.get("mask"),
        masked_image_latents=request.inputs.get("masked_image_latents"),
        strength=parameters.number("strength", default=1.0, minimum=0, maximum=1),
        num_resamples=parameters.integer("num_resamples", default=1, minimum=1, maximum=MAX_NUM_RESAMPLES),
        progress_every=parameters.optional_integer("progress_every", minimum=1, maximum=MAX_EVALUATIONS),
        previews=parameters.flag("previews", default=False),
        priority=parameters.choice("request_priority", tuple(Priority)) or Priority.NORMAL,
        finish_here=parameters.flag("finish_here", default=False),
        resume=_read_state(request.inputs, parameters.text("state_key", default="")),
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


# Frames


def write_event(event: DenoiseEvent) -> Frame:
    """The frame of what a denoising tells on its way."""
    match event:
        case Progress():
            parameters: dict[str, Scalar] = {"position": event.position, "num_evaluations": event.num_evaluations}
            return Frame(kind=Kind.PROGRESS, response=InferResponse(model_name=MODEL, outputs={}, parameters=parameters))
        case State():
            outputs = _tensors_of(event.state)
            if event.predicted_original is not None:
                outputs["predicted_original"] = event.predicted_original
            parameters = {"state_key": event.state.state_key}
            return Frame(kind=Kind.STATE, response=InferResponse(model_name=MODEL, outputs=outputs, parameters=parameters))
        case Denoised():
            return Frame(kind=Kind.RESULT, response=write_response(event))
        case _:
            assert_never(event)


def frame_reader(request: DenoiseRequest, identity: DiffusionIdentity) -> FrameReader:
    """A reader of the frames that answer a request: it takes the tensors that this request has, and nothing else."""
    rows, shape = len(request.seeds), identity.latents_shape(request.width, request.height)
    outputs = {
        Kind.STATE: (*_state(rows, shape), _predicted_original(rows, shape)),
        Kind.RESULT: (TensorSpec(name="latents", datatype="FP32", shape=(rows, *shape)),),
    }
    arrays_of_a_row = MAX_STATE_ARRAYS + 2
    return FrameReader(outputs, limit=rows * (4 * math.prod(shape) * arrays_of_a_row + 4))


def read_event(frame: Frame, request: DenoiseRequest) -> DenoiseEvent:
    """What a frame, other than that of an error, tells.

    Raises:
        MalformedRequest, InvalidValue: It tells nothing that can be.
    """
    match frame.kind:
        case Kind.PROGRESS:
            return _read_progress(frame.response)
        case Kind.STATE:
            return _read_state_of_response(frame.response, len(request.seeds))
        case Kind.RESULT:
            return read_response(frame.response, request)
        case _:
            raise MalformedRequest(f"a frame of the kind {frame.kind} tells nothing of a denoising")


def _read_progress(response: InferResponse) -> Progress:
    position, num_evaluations = (response.parameters.get(name) for name in ("position", "num_evaluations"))
    # type() and not isinstance(): JSON's true is no number of evaluations.
    if type(position) is not int or type(num_evaluations) is not int or not 0 <= position <= num_evaluations:
        raise MalformedRequest("the progress of a frame must be a position from 0 to num_evaluations")
    return Progress(position=position, num_evaluations=num_evaluations)


def _read_state_of_response(response: InferResponse, rows: int) -> State:
    state_key = response.parameters.get("state_key")
    if not isinstance(state_key, str) or not 0 < len(state_key) <= MAX_TEXT_CHARACTERS:
        raise MalformedRequest("the state of a frame must have a state_key")
    shape = (ANY, ANY, ANY)
    latents, sampler_state, position = (take_output(response.outputs, spec) for spec in _state(rows, shape))
    predicted_original = None
    if "predicted_original" in response.outputs:
        predicted_original = take_output(response.outputs, _predicted_original(rows, shape))
    state = DenoiseState(latents=latents, sampler_state=sampler_state, position=position, state_key=state_key)
    return State(state=state, predicted_original=predicted_original)


# Tensors


def _tensors_of(state: DenoiseState) -> dict[str, Array]:
    return {"latents": state.latents, "sampler_state": state.sampler_state, "position": state.position}


def _read_state(tensors: Mapping[str, Array], state_key: str) -> DenoiseState | None:
    """The state that a request resumes from; None where it has no part of one."""
    parts: dict[str, Any] = {**{name: tensors.get(name) for name in _INPUTS_TO_RESUME}, "state_key": state_key or None}
    missing = [name for name, part in parts.items() if part is None]
    if len(missing) == len(parts):
        return None
    if missing:
        raise InvalidValue(f"to resume takes {', '.join(parts)}; {missing[0]} is missing", param=missing[0])
    return DenoiseState(**parts)


def _length_to_expect(context: Array | None, identity: DiffusionIdentity) -> int:
    """Of contexts: one chunk, unless they are several; how many there may be is the stage's to say, with what can be done."""
    length = identity.context_length
    several = context is not None and context.ndim == 3 and context.shape[1] > length and context.shape[1] % length == 0
    return ANY if several else length


def _inputs(identity: DiffusionIdentity, *, context_length: int) -> tuple[TensorSpec, ...]:
    context = (ANY, context_length, identity.context_width)
    latents = (ANY, ANY, identity.latent_channels)
    return (
        TensorSpec(name="context", datatype="FP32", shape=context),
        TensorSpec(name="unconditional_context", datatype="FP32", shape=context, optional=True),
        TensorSpec(name="seed", datatype="UINT64", shape=(ANY,)),
        TensorSpec(name="initial_noise", datatype="FP32", shape=(ANY, *latents), optional=True),
        TensorSpec(name="init_latents", datatype="FP32", shape=(ANY, *latents), optional=True),
        TensorSpec(name="mask", datatype="FP32", shape=(ANY, ANY, ANY, 1), optional=not identity.takes_masked_image),
        *(
            (TensorSpec(name="masked_image_latents", datatype="FP32", shape=(ANY, *latents)),)
            if identity.takes_masked_image
            else ()
        ),
        *_state(ANY, latents, optional=True),
    )


def _state(rows: int, latents: tuple[int, ...], *, optional: bool = False) -> tuple[TensorSpec, ...]:
    """The tensors of a state; `latents` is the shape of a row's."""
    return (
        TensorSpec(name="latents", datatype="FP32", shape=(rows, *latents), optional=optional),
        # Some samplers keep nothing.
        TensorSpec(name="sampler_state", datatype="FP32", shape=(rows, ANY, *latents), optional=optional, may_be_empty=True),
        TensorSpec(name="position", datatype="INT32", shape=(rows,), optional=optional),
    )


def _predicted_original(rows: int, latents: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name="predicted_original", datatype="FP32", shape=(rows, *latents), optional=True)
