"""What fits and what does not: three stages to each other, and requests to a stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import DECODER, DIFFUSION, TEXT_ENCODER
from triptych.contract import DecodeRequest, DenoiseRequest, ImageFormat, check_decode, check_denoise, check_fit
from triptych.errors import InvalidValue, StagesDoNotFit

CONTEXT = np.zeros((2, 77, 768), np.float32)
LATENTS = np.zeros((2, 8, 12, 4), np.float32)
MASK = np.ones((1, 8, 12, 1), np.float32)
DENOISE = DenoiseRequest(
    context=CONTEXT,
    unconditional_context=CONTEXT[:1],
    seeds=np.array([1, 2], np.uint64),
    width=96,
    height=64,
    sampler="euler",
    num_steps=4,
    guidance_scale=7.5,
)


def test_stages_of_one_family_fit() -> None:
    check_fit(TEXT_ENCODER, DIFFUSION, DECODER)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"context_width": 1024}, "the text encoder 'fake' has context width 768, the diffusion model 'fake' wants 1024"),
        ({"context_length": 154}, "has context length 77, the diffusion model 'fake' wants 154"),
        ({"text_space": "sd-2"}, "has text space sd-1, the diffusion model 'fake' wants sd-2"),
        ({"latent_space": "sdxl"}, "the diffusion model 'fake' has latent space sdxl, the decoder 'fake' wants sd-1"),
        ({"latent_channels": 16}, "has number of latent channels 16, the decoder 'fake' wants 4"),
        ({"downsampling": 4}, "has downsampling 4, the decoder 'fake' wants 8"),
    ],
)
def test_stages_of_different_families_do_not(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StagesDoNotFit, match=sentence):
        check_fit(TEXT_ENCODER, replace(DIFFUSION, **change), DECODER)


LONG = np.concatenate([CONTEXT, CONTEXT], axis=1)


def test_a_diffusion_model_takes_as_many_chunks_as_it_says() -> None:
    three = replace(DIFFUSION, max_prompt_chunks=3)
    for chunks in (1, 2, 3):
        context = CONTEXT.repeat(chunks, axis=1)
        check_denoise(replace(DENOISE, context=context, unconditional_context=context[:1]), three)
    too_long = replace(DENOISE, context=CONTEXT.repeat(4, axis=1))
    with pytest.raises(InvalidValue, match=r"the context is 4 chunks of 77, the diffusion model takes 3; .*MAX_PROMPT_CHUNKS=4"):
        check_denoise(too_long, three)


def test_a_diffusion_model_that_reuses_features_takes_every_interval() -> None:
    for cache_interval in (1, 2, 1000):
        check_denoise(replace(DENOISE, cache_interval=cache_interval), replace(DIFFUSION, takes_cache_interval=True))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"context": CONTEXT[:1]},
        {"unconditional_context": None, "guidance_scale": 1.0},
        {"initial_noise": LATENTS},
        {"initial_noise": LATENTS[:1]},
        {"init_latents": LATENTS, "strength": 0.5},
        {"init_latents": LATENTS[:1], "mask": MASK, "num_resamples": 2},
    ],
)
def test_what_a_diffusion_model_takes(change: dict[str, Any]) -> None:
    check_denoise(replace(DENOISE, **change), DIFFUSION)


@pytest.mark.parametrize(
    ("change", "sentence", "param"),
    [
        ({"width": 64, "height": 512}, "no pictures of 64x512; it makes 64x64, 96x64, 64x96", "width"),
        ({"sampler": "plms"}, "there is no sampler 'plms'; there are ddim, euler", "sampler"),
        ({"guidance_scale": -0.5}, "guidance_scale must be 0 or more, not -0.5", "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be 0 or more, not inf", "guidance_scale"),
        (
            {"guidance_start": 0.6, "guidance_end": 0.5},
            "0 to 1, the former no more than the latter, not 0.6 and 0.5",
            "guidance_start",
        ),
        ({"guidance_end": 1.1}, "not 0.0 and 1.1", "guidance_start"),
        ({"cache_interval": 0}, "cache_interval must be 1 or more, not 0", "cache_interval"),
        ({"cache_interval": 2}, "takes no cache_interval but 1, not 2; .* TRIPTYCH_FEATURE_REUSE=true", "cache_interval"),
        ({"unconditional_context": None}, "without unconditional_context the guidance_scale must be 1", "unconditional_context"),
        ({"seeds": np.zeros(0, np.uint64)}, "seeds must be uint64", "seed"),
        ({"seeds": np.zeros(2, np.int64)}, "seeds must be uint64", "seed"),
        (
            {"context": np.zeros((3, 77, 768), np.float32)},
            r"context must be float32 \(2 or 1, 77, 768\), not float32 \(3,",
            "context",
        ),
        ({"context": CONTEXT[:, :, :512]}, r"not float32 \(2, 77, 512\)", "context"),
        (
            {"context": LONG},
            "the context is 2 chunks of 77, the diffusion model takes 1; .* TRIPTYCH_MAX_PROMPT_CHUNKS=2",
            "context",
        ),
        ({"context": LONG[:, :100]}, r"must be float32 \(2 or 1, 77, 768\), not float32 \(2, 100, 768\)", "context"),
        ({"context": CONTEXT.repeat(3, axis=1)[:, :160]}, r"768\), not float32 \(2, 160, 768\)", "context"),
        ({"context": LONG[:, :0]}, r"must be float32 \(2 or 1, 77, 768\), not float32 \(2, 0, 768\)", "context"),
        ({"context": CONTEXT[0]}, r"must be float32 \(2 or 1, 77, 768\), not float32 \(77, 768\)", "context"),
        ({"unconditional_context": LONG}, r"unconditional_context must be float32 \(2 or 1, 77,", "unconditional_context"),
        ({"unconditional_context": CONTEXT.astype(np.float64)}, "not float64", "unconditional_context"),
        ({"initial_noise": LATENTS.transpose(0, 2, 1, 3)}, r"not float32 \(2, 12, 8, 4\)", "initial_noise"),
        ({"init_latents": LATENTS[..., :3]}, r"init_latents must be float32 \(2 or 1, 8, 12, 4\)", "init_latents"),
        ({"init_latents": LATENTS, "mask": MASK[..., 0]}, r"mask must be float32 \(2 or 1, 8, 12, 1\)", "mask"),
        ({"init_latents": LATENTS, "mask": 2 * MASK}, "a mask must be between 0, to keep, and 1, to paint", "mask"),
        ({"init_latents": LATENTS, "mask": MASK * np.float32("nan")}, "a mask must be between 0", "mask"),
        ({"mask": MASK}, "with a mask this model needs the init_latents that it keeps", "init_latents"),
        ({"mask": MASK, "masked_image_latents": LATENTS}, "takes no masked_image_latents", "masked_image_latents"),
        ({"strength": 0.5}, "strength says how much of a picture to change, and there are no init_latents", "strength"),
        ({"init_latents": LATENTS, "strength": 1.5}, "strength must be between 0 and 1, not 1.5", "strength"),
        ({"num_resamples": 2}, "num_resamples is for masks", "num_resamples"),
        ({"init_latents": LATENTS, "mask": MASK, "num_resamples": 0}, "num_resamples must be 1 or more", "num_resamples"),
    ],
)
def test_what_a_diffusion_model_does_not_take(change: dict[str, Any], sentence: str, param: str) -> None:
    with pytest.raises(InvalidValue, match=sentence) as refused:
        check_denoise(replace(DENOISE, **change), DIFFUSION)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("change", "missing"),
    [({}, "mask"), ({"mask": MASK}, "masked_image_latents"), ({"masked_image_latents": LATENTS}, "mask")],
)
def test_a_model_that_takes_a_masked_image_needs_it(change: dict[str, Any], missing: str) -> None:
    inpainting = replace(DIFFUSION, takes_masked_image=True)
    check_denoise(replace(DENOISE, mask=MASK, masked_image_latents=LATENTS), inpainting)
    with pytest.raises(InvalidValue, match=f"this model inpaints, and needs {missing} with every request") as refused:
        check_denoise(replace(DENOISE, **change), inpainting)
    assert refused.value.param == missing


def test_what_a_decoder_takes() -> None:
    check_decode(DecodeRequest(latents=LATENTS), DECODER)
    check_decode(DecodeRequest(latents=LATENTS, image_format=ImageFormat.PNG, image_texts=("a", "b")), DECODER)


@pytest.mark.parametrize(
    ("change", "sentence", "param"),
    [
        ({"latents": LATENTS[:, :4]}, "a picture of 96x32; this decoder makes 64x64, 96x64, 64x96", "latents"),
        ({"latents": LATENTS[0]}, r"latents must be float32 \(B, H/8, W/8, 4\), not float32 \(8, 12, 4\)", "latents"),
        ({"latents": LATENTS[..., :3]}, "latents must be float32", "latents"),
        ({"latents": LATENTS[:0]}, "latents must be float32", "latents"),
        ({"latents": LATENTS.astype(np.float16)}, "not float16", "latents"),
        ({"image_texts": ("one",)}, "there are 1 image_texts for 2 pictures", "image_text"),
    ],
)
def test_what_a_decoder_does_not_take(change: dict[str, Any], sentence: str, param: str) -> None:
    with pytest.raises(InvalidValue, match=sentence) as refused:
        check_decode(replace(DecodeRequest(latents=LATENTS), **change), DECODER)
    assert refused.value.param == param
