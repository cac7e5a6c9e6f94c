"""Inpainting by a network of nine channels, and image-to-image, against diffusers' pipelines: same weights, same noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from tests.stages.options import Options
from tests.tiny_models import CONTEXT_LENGTH, INPAINTING_UNET, UNET, write_tiny_model
from triptych.contract import DecodeRequest, Denoised, Encoded, UInt8
from triptych.gateway.pictures import latent_mask
from triptych.pipeline import Edit, GenerateRequest, Mask
from triptych.sampling.noise import Purpose, normal
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.image_encoder import ImageEncoderStage

SIDE = 32
SEED = 7
GENERATOR = np.random.default_rng(3)
CONTEXTS = GENERATOR.standard_normal((2, CONTEXT_LENGTH, UNET.cross_attention_dim)).astype(np.float32)
PIXELS = GENERATOR.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[8:24, 16:] = 255  # whole latents, so that it does not matter how a mask is made smaller
NOISE = normal(SEED, Purpose.INITIAL, 0, (SIDE // 8, SIDE // 8, 4))

# diffusers warns of text encoders that are not there, and numpy of how torch's tensors are converted.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module", params=[UNET, INPAINTING_UNET], ids=["four channels", "nine channels"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), unet=request.param)


@pytest.fixture(scope="module")
def options(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    cache = tmp_path_factory.mktemp("cache")
    return Options(model=str(folder), cache_folder=cache, precision="float32", batch_sizes=(2,), sizes=((SIDE, SIDE),))


@pytest.fixture(scope="module")
def stages(options: Options) -> Iterator[tuple[ImageEncoderStage, DiffusionStage, DecoderStage]]:
    started = (ImageEncoderStage(options), DiffusionStage(options), DecoderStage(options))
    for stage in started:
        stage.start()
    yield started
    for stage in started:
        stage.close()


def theirs(folder: Path, *, strength: float, masked: bool) -> tuple[np.ndarray, UInt8]:
    """Latents and pixels of diffusers' pipeline."""
    kind = diffusers.StableDiffusionInpaintPipeline if masked else diffusers.StableDiffusionImg2ImgPipeline
    pipeline = kind(
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae").float(),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", sample_size=SIDE // 8).float(),
        scheduler=diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"),
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"mask_image": Image.fromarray(MASK), "height": SIDE, "width": SIDE} if masked else {}
    noise = torch.from_numpy(NOISE).permute(2, 0, 1)[None]
    with (
        mock.patch(f"{kind.__module__}.randn_tensor", return_value=noise),
        mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()),
    ):
        latents = pipeline(
            prompt_embeds=torch.from_numpy(CONTEXTS[:1]),
            negative_prompt_embeds=torch.from_numpy(CONTEXTS[1:]),
            image=Image.fromarray(PIXELS),
            strength=strength,
            num_inference_steps=5,
            guidance_scale=3.0,
            output_type="latent",
            **options,
        ).images
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pixels = pipeline.image_processor.postprocess(decoded.detach(), output_type="np")
    return latents.permute(0, 2, 3, 1).numpy(), np.rint(255 * pixels).astype(np.uint8)


async def ours(stages: Any, *, strength: float, masked: bool) -> tuple[np.ndarray, UInt8]:
    image_encoder, diffusion, decoder = stages
    mask = Mask(pixels=MASK, latents=latent_mask(MASK, 8), paste=MASK) if masked else None
    request = GenerateRequest(
        prompt="",
        seed=SEED,
        width=SIDE,
        height=SIDE,
        sampler="ddim",
        num_steps=5,
        guidance_scale=3.0,
        edit=Edit(image=PIXELS, mask=mask, strength=strength, num_resamples=1),
        takes_masked_image=(await diffusion.identity()).takes_masked_image,
    )
    pictures = request.to_encode_images()
    assert pictures is not None
    images = await image_encoder.encode_images(pictures)
    *_, denoised = [event async for event in diffusion.denoise(request.to_denoise(Encoded(context=CONTEXTS), images))]
    assert isinstance(denoised, Denoised)
    decoded = await decoder.decode(DecodeRequest(latents=denoised.latents))
    assert isinstance(decoded.images, np.ndarray)
    return denoised.latents, decoded.images


@pytest.mark.parametrize("strength", [1.0, 0.7])
async def test_a_changed_picture_is_that_of_diffusers(folder: Path, stages: Any, strength: float) -> None:
    # With four channels image-to-image: under a mask diffusers puts back one noise at every step, RePaint a fresh one.
    masked = (await stages[1].identity()).takes_masked_image
    latents, pixels = await ours(stages, strength=strength, masked=masked)
    their_latents, their_pixels = theirs(folder, strength=strength, masked=masked)
    assert np.abs(latents - their_latents).max() <= 1e-4 * np.abs(their_latents).max()
    assert np.abs(pixels.astype(int) - their_pixels).max() <= 1
