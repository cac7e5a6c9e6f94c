from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import DIFFUSION
from tests.wire.passage import CONTEXT, LATENTS, assert_same, back_over_the_wire, over_the_wire
from triptych.contract import Denoised, DenoiseRequest
from triptych.errors import InvalidValue, NotSupported
from triptych.wire import diffusion
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


@pytest.mark.parametrize(
    "request_",
    [
        DENOISE,
        replace(DENOISE, unconditional_context=None, guidance_scale=1.0, initial_noise=None),
        replace(DENOISE, context=CONTEXT[:1], initial_noise=LATENTS[:1]),
    ],
)
def test_a_denoising_arrives(request_: DenoiseRequest) -> None:
    assert_same(diffusion.read_request(over_the_wire(diffusion.write_request(request_)), DIFFUSION), request_)


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
        ({"seed": np.array([1, 2], np.int64)}, {}, "seed must be UINT64, not INT64"),
        ({"seed": np.zeros(0, np.uint64)}, {}, "seed is empty"),
        ({"initial_noise": LATENTS[..., :3]}, {}, r"initial_noise must have the shape \[-1, -1, -1, 4\]"),
        ({"mask": LATENTS}, {}, "there is no input 'mask'; the inputs are context, unconditional_context, seed, initial_noise"),
        ({}, {"num_steps": 0}, "num_steps must be a whole number from 1 to 1000"),
        ({}, {"guidance_scale": 101}, "guidance_scale must be a number from 0 to 100"),
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


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        ({"sampler_state": LATENTS}, {}, "the input sampler_state is for resuming, which is not supported"),
        ({"position": np.zeros(2, np.int32)}, {}, "the input position is for resuming"),
        ({"latents": LATENTS}, {}, "the input latents is for resuming"),
        ({}, {"progress_every": 1}, "the parameter progress_every is not supported"),
        ({}, {"previews": True}, "the parameter previews is not supported"),
        ({}, {"state_key": "k"}, "the parameter state_key is not supported"),
    ],
)
def test_frames_and_resuming_come_later(inputs: Any, parameters: Any, sentence: str) -> None:
    written = diffusion.write_request(DENOISE)
    request = replace(written, inputs={**written.inputs, **inputs}, parameters={**written.parameters, **parameters})
    with pytest.raises(NotSupported, match=sentence):
        diffusion.read_request(request, DIFFUSION)


def test_metadata_says_who_it_is() -> None:
    assert diffusion.from_metadata(diffusion.to_metadata(DIFFUSION)) == DIFFUSION
