from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import DIFFUSION
from tests.wire.passage import CONTEXT, LATENTS, assert_same, back_over_the_wire, over_the_wire
from triptych.contract import Denoised, DenoiseEvent, DenoiseRequest, DenoiseState, Priority, Progress, State
from triptych.errors import InvalidValue, MalformedRequest
from triptych.wire import diffusion
from triptych.wire.frames import encode_frame, error_frame
from triptych.wire.metadata import ModelMetadata
from triptych.wire.open_inference import InferRequest, InferResponse

DENOISE = DenoiseRequest(
    context=CONTEXT,
    unconditional_context=CONTEXT[:1],
    seeds=np.array([7, 2**64 - 1], np.uint64),
    width=96,
    height=64,
    sampler="euler",
    num_steps=20,
    guidance_scale=7.5,
    initial_noise=LATENTS,
)


def state_of(n: int) -> DenoiseState:
    """The state of two rows of which one is ahead, and of a sampler that keeps n arrays."""
    arrays = np.linspace(0, 1, 2 * n * 8 * 12 * 4, dtype=np.float32).reshape(2, n, 8, 12, 4)
    return DenoiseState(latents=LATENTS, sampler_state=arrays, position=np.array([3, 4], np.int32), state_key="k" * 64)


@pytest.mark.parametrize(
    "request_",
    [
        DENOISE,
        replace(DENOISE, unconditional_context=None, guidance_scale=1.0, initial_noise=None),
        replace(DENOISE, context=CONTEXT[:1], initial_noise=LATENTS[:1]),
        replace(DENOISE, guidance_start=0.25, guidance_end=0.5),
        replace(DENOISE, cache_interval=3),
        replace(DENOISE, init_latents=LATENTS[:1], strength=0.3),
        replace(DENOISE, init_latents=LATENTS, mask=LATENTS[..., :1], num_resamples=4),
    ],
)
def test_a_denoising_arrives(request_: DenoiseRequest) -> None:
    assert_same(diffusion.read_request(over_the_wire(diffusion.write_request(request_)), DIFFUSION), request_)


def test_metadata_says_what_a_model_inpaints_with() -> None:
    inpainting = replace(DIFFUSION, takes_masked_image=True)
    plain, masked = ({spec.name: spec for spec in diffusion.to_metadata(each).inputs} for each in (DIFFUSION, inpainting))
    assert plain["mask"].optional and not masked["mask"].optional
    assert "masked_image_latents" not in plain
    assert (masked["masked_image_latents"].shape, masked["masked_image_latents"].optional) == ((-1, -1, -1, 4), False)
    assert diffusion.from_metadata(diffusion.to_metadata(inpainting)) == inpainting


def test_metadata_says_whether_features_are_reused() -> None:
    reusing = replace(DIFFUSION, takes_cache_interval=True)
    metadata = diffusion.to_metadata(reusing)
    assert diffusion.from_metadata(metadata) == reusing
    older = {name: value for name, value in metadata.parameters.items() if name != "takes_cache_interval"}
    assert not diffusion.from_metadata(replace(metadata, parameters=older)).takes_cache_interval


def test_a_masked_image_arrives_where_it_is_taken() -> None:
    request = replace(DENOISE, mask=LATENTS[..., :1], masked_image_latents=LATENTS)
    read = diffusion.read_request(over_the_wire(diffusion.write_request(request)), replace(DIFFUSION, takes_masked_image=True))
    assert_same(read, request)
    with pytest.raises(InvalidValue, match="there is no input 'masked_image_latents'"):
        diffusion.read_request(over_the_wire(diffusion.write_request(request)), DIFFUSION)


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_long_contexts_arrive_wherever_they_may_be_too_long(chunks: int) -> None:
    context = CONTEXT.repeat(chunks, axis=1)
    long = replace(DENOISE, context=context, unconditional_context=context[:1])
    for most in (1, 3):  # the stage refuses them, in a sentence that says what can be done
        read = diffusion.read_request(over_the_wire(diffusion.write_request(long)), replace(DIFFUSION, max_prompt_chunks=most))
        assert_same(read, long)


@pytest.mark.parametrize(("chunks", "length"), [(1, 77), (3, -1)])
def test_metadata_says_how_long_contexts_may_be(chunks: int, length: int) -> None:
    metadata = diffusion.to_metadata(replace(DIFFUSION, max_prompt_chunks=chunks))
    shapes = {spec.name: spec.shape for spec in metadata.inputs}
    assert shapes["context"] == shapes["unconditional_context"] == (-1, length, 768)
    assert diffusion.from_metadata(metadata).max_prompt_chunks == chunks


def test_absent_parameters_are_the_models_own() -> None:
    written = diffusion.write_request(replace(DENOISE, initial_noise=None))
    read = diffusion.read_request(replace(written, parameters={}), DIFFUSION)
    assert (read.width, read.height, read.sampler, read.num_steps, read.guidance_scale) == (64, 64, "ddim", 4, 7.5)


def test_latents_arrive() -> None:
    denoised = Denoised(latents=LATENTS)
    assert_same(diffusion.read_response(back_over_the_wire(diffusion.write_response(denoised)), DENOISE), denoised)


@pytest.mark.parametrize(
    ("latents", "sentence"),
    [
        (LATENTS[:1], r"latents must have the shape \[2, -1, -1, -1\]"),
        (np.full_like(LATENTS, np.nan), "NaN or infinite"),
        (LATENTS.astype(np.float16), "latents must be FP32, not FP16"),
    ],
)
def test_latents_that_are_no_answer_are_refused(latents: np.ndarray, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        diffusion.read_response(InferResponse(model_name="diffusion", outputs={"latents": latents}), DENOISE)


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        ({"context": CONTEXT[..., :512]}, {}, r"context must have the shape \[-1, 77, 768\], not \[2, 77, 512\]"),
        ({"context": CONTEXT[:, :76]}, {}, r"context must have the shape \[-1, 77, 768\], not \[2, 76, 768\]"),
        ({"context": CONTEXT.repeat(2, axis=1)[:, 1:]}, {}, r"context must have the shape \[-1, 77, 768\], not \[2, 153, 768\]"),
        ({"unconditional_context": CONTEXT.repeat(2, axis=1)}, {}, r"must have the shape \[-1, 77, 768\], not \[2, 154, 768\]"),
        ({"seed": np.array([1, 2], np.int64)}, {}, "seed must be UINT64, not INT64"),
        ({"seed": np.zeros(0, np.uint64)}, {}, "seed is empty"),
        ({"initial_noise": LATENTS[..., :3]}, {}, r"initial_noise must have the shape \[-1, -1, -1, 4\]"),
        ({"noise": LATENTS}, {}, "there is no input 'noise'; the inputs are context, unconditional_context, seed, initial_noise"),
        ({}, {"num_steps": 0}, "num_steps must be a whole number from 1 to 1000"),
        ({}, {"guidance_scale": 101}, "guidance_scale must be a number from 0 to 100"),
        ({}, {"guidance_start": -0.1}, "guidance_start must be a number from 0 to 1"),
        ({}, {"guidance_end": 1.5}, "guidance_end must be a number from 0 to 1"),
        ({}, {"cache_interval": 0}, "cache_interval must be a whole number from 1 to 1000"),
        ({}, {"cache_interval": 1.5}, "cache_interval must be a whole number from 1 to 1000"),
        ({}, {"sampler": 7}, "sampler must be a text of at most 64 characters"),
        ({}, {"width": 64.0}, "width must be a whole number from 1 to 8192"),
        ({}, {"height": 8193}, "height must be a whole number from 1 to 8192"),
        (
            {},
            {"scheduler": "euler"},
            "there is no parameter 'scheduler'; there are width, height, sampler, num_steps, guidance_scale",
        ),
    ],
)
def test_a_denoising_that_does_not_fit_is_refused(inputs: Any, parameters: Any, sentence: str) -> None:
    written = diffusion.write_request(DENOISE)
    tensors = {name: array for name, array in {**written.inputs, **inputs}.items() if array is not None}
    with pytest.raises(InvalidValue, match=sentence):
        diffusion.read_request(InferRequest(inputs=tensors, parameters={**written.parameters, **parameters}), DIFFUSION)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_state_to_resume_from_arrives(n: int) -> None:
    request = replace(DENOISE, resume=state_of(n), progress_every=5, previews=True)
    read = diffusion.read_request(over_the_wire(diffusion.write_request(request)), DIFFUSION)
    assert read.resume is not None
    assert_same(read.resume, state_of(n))
    assert (read.progress_every, read.previews) == (5, True)


@pytest.mark.parametrize("priority", list(Priority))
@pytest.mark.parametrize("finish_here", [False, True])
def test_a_priority_and_whether_to_finish_here_arrive(priority: Priority, finish_here: bool) -> None:
    written = diffusion.write_request(replace(DENOISE, priority=priority, finish_here=finish_here))
    read = diffusion.read_request(over_the_wire(written), DIFFUSION)
    assert (read.priority, read.finish_here) == (priority, finish_here)
    named = {"request_priority", "finish_here"} & set(written.parameters)
    assert len(named) == (priority != "normal") + finish_here, "what is usual is not sent: older stages know no such parameter"


@pytest.mark.parametrize("missing", ["latents", "sampler_state", "position", "state_key"])
def test_half_a_state_is_none(missing: str) -> None:
    written = diffusion.write_request(replace(DENOISE, resume=state_of(1)))
    inputs, parameters = dict(written.inputs), dict(written.parameters)
    (parameters if missing == "state_key" else inputs).pop(missing)
    with pytest.raises(InvalidValue, match=f"to resume takes latents, sampler_state, position, state_key; {missing} is missing"):
        diffusion.read_request(InferRequest(inputs=inputs, parameters=parameters), DIFFUSION)


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        ({"position": np.zeros(2, np.int64)}, {}, "position must be INT32, not INT64"),
        ({"position": np.zeros((2, 1), np.int32)}, {}, r"position must have the shape \[-1\], not \[2, 1\]"),
        ({"latents": LATENTS[..., :3]}, {}, "latents must have the shape"),
        ({"latents": np.full_like(LATENTS, np.inf)}, {}, "latents has values that are NaN or infinite"),
        ({"sampler_state": LATENTS}, {}, "sampler_state must have the shape"),
        ({"sampler_state": np.zeros((0, 1, 8, 12, 4), np.float32)}, {}, "sampler_state is empty"),
        ({"sampler_state": np.full((2, 1, 8, 12, 4), np.nan, np.float32)}, {}, "sampler_state has values that are NaN"),
        ({}, {"state_key": 7}, "state_key must be a text of at most 64 characters"),
        ({}, {"progress_every": 0}, "progress_every must be a whole number from 1"),
        ({}, {"request_priority": "urgent"}, "request_priority must be one of low, normal, high"),
        ({}, {"finish_here": 1}, "finish_here must be true or false"),
        ({}, {"previews": 1}, "previews must be true or false"),
    ],
)
def test_a_state_that_is_none_is_refused(inputs: Any, parameters: Any, sentence: str) -> None:
    written = diffusion.write_request(replace(DENOISE, resume=state_of(1)))
    request = replace(written, inputs={**written.inputs, **inputs}, parameters={**written.parameters, **parameters})
    with pytest.raises(InvalidValue, match=sentence):
        diffusion.read_request(request, DIFFUSION)


@pytest.mark.parametrize(
    "event",
    [
        Progress(position=3, num_evaluations=20),
        State(state=state_of(0)),
        State(state=state_of(3), predicted_original=LATENTS),
        Denoised(latents=LATENTS),
    ],
)
def test_what_a_denoising_tells_arrives(event: DenoiseEvent) -> None:
    content = encode_frame(diffusion.write_event(event))
    (frame,) = diffusion.frame_reader(DENOISE, DIFFUSION).feed(content)
    read = diffusion.read_event(frame, DENOISE)
    if isinstance(event, State) and isinstance(read, State):
        assert_same(read.state, event.state)
        assert (read.predicted_original is None) == (event.predicted_original is None)
    else:
        assert_same(read, event)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (Progress(position=21, num_evaluations=20), "position from 0 to num_evaluations"),
        (Progress(position=True, num_evaluations=20), "position from 0 to num_evaluations"),
        (State(state=replace(state_of(0), state_key="")), "must have a state_key"),
        (State(state=replace(state_of(0), state_key="k" * 65)), "must have a state_key"),
        (State(state=replace(state_of(0), latents=np.full_like(LATENTS, np.nan))), "latents has values that are NaN"),
        (
            State(state=state_of(0), predicted_original=np.full_like(LATENTS, np.nan)),
            "predicted_original has values that are NaN",
        ),
        (State(state=replace(state_of(0), latents=LATENTS[:1])), r"latents must have the shape \[2, 8, 12, 4\], not \[1, 8"),
        (State(state=state_of(18)), "bytes, at most"),
        (Denoised(latents=LATENTS[:, :4]), r"latents must have the shape \[2, 8, 12, 4\], not \[2, 4"),
    ],
)
def test_frames_of_another_denoising_are_refused(event: DenoiseEvent, sentence: str) -> None:
    content = encode_frame(diffusion.write_event(event))
    with pytest.raises((MalformedRequest, InvalidValue), match=sentence):
        [diffusion.read_event(frame, DENOISE) for frame in diffusion.frame_reader(DENOISE, DIFFUSION).feed(content)]


def test_an_error_is_no_event() -> None:
    with pytest.raises(MalformedRequest, match="of the kind error tells nothing"):
        diffusion.read_event(error_frame(InvalidValue("no"), model_name="diffusion"), DENOISE)


def test_metadata_say_that_there_are_frames() -> None:
    metadata = diffusion.to_metadata(DIFFUSION)
    assert diffusion.offers_frames(ModelMetadata.from_json(metadata.to_json()))
    assert not diffusion.offers_frames(replace(metadata, parameters={**metadata.parameters, "frames": "no"}))
    assert {spec.name for spec in metadata.inputs} >= {"latents", "sampler_state", "position"}


def test_metadata_says_who_it_is() -> None:
    assert diffusion.from_metadata(diffusion.to_metadata(DIFFUSION)) == DIFFUSION
