from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import FACTS, SIZES, VAE, run_network
from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.contract import EncodeImagesRequest
from triptych.errors import InvalidValue, StageTimeout
from triptych.sampling.noise import Purpose, normal
from triptych.stages.image_encoder import ImageEncoderStage

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
SEEDS = np.array([5, 5, 2**64 - 1], np.uint64)


@pytest.fixture(scope="module")
def stage(options) -> Iterator[ImageEncoderStage]:
    stage = ImageEncoderStage(options)
    stage.start()
    yield stage
    stage.close()


async def encode(stage, images=IMAGES, seeds=None, mask=None, **arguments):
    return (await stage.encode_images(EncodeImagesRequest(images=images, seeds=seeds, mask=mask), **arguments)).latents


async def test_it_says_who_it_is(stage):
    identity = await stage.identity()
    assert identity.latent_space == FACTS.latent_space
    assert (identity.latent_channels, identity.downsampling, identity.scaling_factor) == (4, 8, VAE.scaling_factor)
    assert identity.sizes == SIZES


async def test_latents_are_the_networks_mean_scaled(stage, options):
    latents = await encode(stage)
    assert (latents.shape, latents.dtype) == ((3, 4, 8, 4), np.float32)
    network = load_network(DiffusersFolder(Path(options.model)), Network.VAE_ENCODER)
    expected = run_network(network, {"images": IMAGES / np.float32(127.5) - 1})
    np.testing.assert_allclose(latents, VAE.scaling_factor * expected["mean"], rtol=0.05, atol=0.02)


async def test_a_seed_is_a_sample_of_what_is_seen(stage):
    mean, samples = await encode(stage), await encode(stage, seeds=SEEDS)
    (again,) = await encode(stage, IMAGES[1:2], SEEDS[1:2])
    np.testing.assert_array_equal(again, samples[1])
    # One seed is one noise, whatever the picture: what differs is how far it goes.
    noise = normal(5, Purpose.POSTERIOR, 0, (4, 8, 4))
    assert (np.sign(samples[:2] - mean[:2]) == np.sign(noise)).mean() > 0.99


async def test_what_the_mask_covers_is_not_seen(stage):
    mask = np.zeros((1, 32, 64), np.uint8)
    mask[:, :, 40:] = 128
    other = IMAGES.copy()
    other[:, :, 40:] = 255 - other[:, :, 40:]
    np.testing.assert_array_equal(await encode(stage, mask=mask), await encode(stage, other, mask=mask))
    assert np.abs(await encode(stage) - await encode(stage, other)).max() > 0.01
    np.testing.assert_array_equal(await encode(stage, mask=0 * mask), await encode(stage))


async def test_a_picture_is_the_same_whatever_its_company(stage):
    together = await encode(stage)
    for row in range(3):
        np.testing.assert_array_equal(await encode(stage, IMAGES[row : row + 1]), together[row : row + 1])
    one, other = await asyncio.gather(encode(stage, IMAGES[:1]), encode(stage, IMAGES[1:]))
    np.testing.assert_array_equal(np.concatenate([one, other]), together)


@pytest.mark.parametrize(
    ("images", "seeds", "sentence"),
    [
        (IMAGES[:, :, :48], None, "this model takes no pictures of 48x32; it takes 32x32, 64x32"),
        (IMAGES[..., :1], None, r"images must be uint8 \(B, H, W, 3\), not uint8 \(3, 32, 64, 1\)"),
        (IMAGES[:0], None, "images must be uint8"),
        (IMAGES.astype(np.float32), None, "not float32"),
        (IMAGES, SEEDS[:2], "seeds must be uint64, one for each picture"),
        (IMAGES, SEEDS.astype(np.int64), "seeds must be uint64"),
    ],
)
async def test_what_does_not_fit_is_refused(stage, images, seeds, sentence):
    with pytest.raises(InvalidValue, match=sentence):
        await encode(stage, images, seeds)


async def test_a_mask_of_another_size_is_refused(stage):
    with pytest.raises(InvalidValue, match=r"mask must be uint8 \(3 or 1, 32, 64\)"):
        await encode(stage, mask=np.zeros((1, 32, 32), np.uint8))


async def test_past_the_deadline_there_are_no_latents(stage):
    with pytest.raises(StageTimeout):
        await encode(stage, deadline=0.0)
