"""Pictures in tiles against the same pictures whole: the stages, on the tiny model's random weights and on vignette's."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import VAE
from triptych.checkpoints.checkpoint import Network, VAEPart
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.contract import DecodeRequest, EncodeImagesRequest, StageName
from triptych.engines import RowSpec
from triptych.errors import StartError
from triptych.models.config import STABLE_DIFFUSION_1_5_VAE
from triptych.models.tiling import tiling_of_decoder, tiling_of_encoder
from triptych.stages.decoder import DecoderStage
from triptych.stages.image_encoder import ImageEncoderStage
from triptych.stages.networks import NetworkLoader
from triptych.stages.tiles import Mosaic, spans

# Networks are built and compiled before the first test.
pytestmark = pytest.mark.timeout(600)

VIGNETTE = Path(__file__).resolve().parents[2] / "triptych" / "vignette"
MOST_LEVELS = 2
"""Of 255, by which a picture in tiles may differ from the whole anywhere."""


def drawing(width: int, height: int) -> np.ndarray:
    """What has one tone here and another there, as plain tiles do not like it, (1, H, W, 3)."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    picture = np.full((height, width, 3), (250, 250, 245), np.uint8)
    picture[y < 0.35] = (20, 30, 120)
    picture[np.hypot(x - 0.75, (y - 0.68) * height / width) < 0.2] = (220, 30, 30)
    picture[(abs(x - 0.28) < 0.4 * (y - 0.55)) & (y < 0.94)] = (30, 160, 60)
    return picture[None]


@pytest.fixture(scope="module")
def vignette(options):
    return replace(options, model=str(VIGNETTE), sizes=((256, 256), (192, 128)), batch_sizes=(1,))


@pytest.fixture(scope="module")
def encoder(vignette):
    yield from started(ImageEncoderStage(vignette))


@pytest.fixture(scope="module")
def whole(vignette):
    yield from started(DecoderStage(vignette))


@pytest.fixture(scope="module")
def tiled(vignette):
    yield from started(DecoderStage(replace(vignette, tile_side=160)))


def started(stage):
    stage.start()
    yield stage
    stage.close()


async def decoded(stage, latents) -> np.ndarray:
    return (await stage.decode(DecodeRequest(latents=latents))).images


async def encoded(stage, images) -> np.ndarray:
    return (await stage.encode_images(EncodeImagesRequest(images=images))).latents


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


# Where tiles lie


@pytest.mark.parametrize(("side", "largest", "margin"), [*product((40, 41, 64, 97), (21, 30, 64), (4, 6)), (200, 13, 6)])
def test_tiles_answer_for_everything_once_and_know_all_about_it(side, largest, margin):
    tiles = spans(side, largest, margin)
    assert [place for tile in tiles for place in range(tile.first, tile.last)] == list(range(side))
    assert len({tile.end - tile.start for tile in tiles}) == 1
    for tile in tiles:
        assert 0 <= tile.start < tile.end <= side
        assert tile.end - tile.start <= largest
        assert tile.first - tile.start >= margin or tile.first == 0
        assert tile.end - tile.last >= margin or tile.last == side


def test_what_fits_in_a_tile_is_one():
    (tile,) = spans(30, 30, 4)
    assert (tile.start, tile.end, tile.first, tile.last) == (0, 30, 0, 30)


def test_stable_diffusions_vae_in_tiles():
    decoder, encoder = tiling_of_decoder(STABLE_DIFFUSION_1_5_VAE), tiling_of_encoder(STABLE_DIFFUSION_1_5_VAE)
    assert (decoder.scale, decoder.margin, decoder.channels, decoder.num_norms) == (4, 6, 512, 13)
    assert (encoder.scale, encoder.margin, encoder.channels, encoder.num_norms) == (4, 4, 128 * 2, 8)
    mosaic = Mosaic.of(1024, 1024, decoder, largest=768)
    assert (len(mosaic.tiles), mosaic.tile_pixels, mosaic.stride) == (4, (536, 536), 2)


# What comes out


async def test_a_picture_in_tiles_is_the_whole_to_two_levels(encoder, whole, tiled):
    for width, height in ((256, 256), (192, 128)):
        latents = await encoded(encoder, drawing(width, height))
        assert largest_difference(await decoded(tiled, latents), await decoded(whole, latents)) <= MOST_LEVELS


async def test_what_no_picture_looks_like_is_the_whole_too(whole, tiled):
    latents = np.random.default_rng(0).standard_normal((1, 32, 32, 4)).astype(np.float32)
    assert largest_difference(await decoded(tiled, latents), await decoded(whole, latents)) <= MOST_LEVELS


async def test_a_picture_of_one_tone_is_the_whole(encoder, whole, tiled):
    latents = await encoded(encoder, np.full((1, 256, 256, 3), 128, np.uint8))
    assert largest_difference(await decoded(tiled, latents), await decoded(whole, latents)) <= MOST_LEVELS


async def test_random_weights_in_tiles(options):
    options = replace(options, sizes=((160, 128),))
    latents = np.random.default_rng(1).standard_normal((2, 16, 20, 4)).astype(np.float32)
    pictures = []
    for tile_side in (1024, 96):
        (stage,) = stages = [DecoderStage(replace(options, tile_side=tile_side))]
        stage.start()
        pictures.append(await decoded(stage, latents))
        stages[0].close()
    assert largest_difference(*pictures) <= MOST_LEVELS


async def test_the_same_picture_is_the_same_bytes_whatever_its_company(tiled):
    latents = np.random.default_rng(2).standard_normal((3, 16, 24, 4)).astype(np.float32)
    together = await decoded(tiled, latents)
    for row in range(3):
        np.testing.assert_array_equal(await decoded(tiled, latents[row : row + 1]), together[row : row + 1])


async def test_latents_of_a_picture_that_was_encoded_in_tiles(encoder, vignette):
    images = drawing(256, 256)
    whole = await encoded(encoder, images)
    for tiled in started(ImageEncoderStage(replace(vignette, tile_side=160))):
        in_tiles = await encoded(tiled, images)
    assert np.abs(in_tiles - whole).max() < 0.01 * whole.std()


@pytest.mark.parametrize(("precision", "most_images"), [("float32", 6), ("bfloat16", 3)])
@pytest.mark.parametrize("network", [Network.VAE_DECODER, Network.VAE_ENCODER])
def test_a_tile_takes_the_memory_of_a_few_images(vignette, tmp_path, network, precision, most_images):
    """In images of its widest level in float32; a tile that kept all that its norms were found on would take more."""
    networks = NetworkLoader(replace(vignette, precision=precision, cache_folder=tmp_path), StageName.DECODER)
    if networks.numerics.precision != precision:
        pytest.skip(f"this machine has no {precision}")
    vae, decoded = networks.files.vae, network is Network.VAE_DECODER
    side = 64 if decoded else 192  # so large that nothing left over from before has room for it
    tiling = tiling_of_decoder(vae) if decoded else tiling_of_encoder(vae)
    rows = {
        "features" if decoded else "images": RowSpec(shape=(side, side, tiling.channels) if decoded else (4 * side, 4 * side, 3)),
        "share": RowSpec(shape=(side, side, 1)),
        "told": RowSpec(shape=(tiling.num_norms, 2, vae.norm_num_groups)),
    }
    tile = networks.load(network, rows, part=VAEPart.TILE, one_row=True)
    widest = max(vae.block_out_channels[:2]) if decoded else vae.block_out_channels[0]
    assert 1 < tile.call_bytes / (4 * (4 * side) ** 2 * widest) < most_images


def test_only_what_takes_turns_gives_the_engines_memory_back(vignette, tmp_path):
    networks = NetworkLoader(replace(vignette, cache_folder=tmp_path), StageName.DECODER)
    latents = {"latents": RowSpec(shape=(16, 16, networks.files.vae.latent_channels))}
    keeps = {part: networks.load(Network.VAE_DECODER, latents, part=part).keeps_memory for part in (None, VAEPart.TRUNK)}
    assert keeps == {None: True, VAEPart.TRUNK: False}


# What is said of it


async def test_the_identity_says_what_is_done_in_tiles(whole, tiled):
    assert (await whole.identity()).tile_sizes == (await whole.identity()).sizes
    assert (await tiled.identity()).tile_sizes == ((144, 144), (112, 128))


def test_tiles_that_would_know_nothing_all_about_are_refused(vignette):
    least = (2 * tiling_of_decoder(DiffusersFolder(VIGNETTE).vae).margin + 1) * 4
    with pytest.raises(
        StartError, match=f"tile_side: tiles of this model's VAE must have {least} pixels of an edge at least, not 16"
    ):
        DecoderStage(replace(vignette, tile_side=16)).start()


def test_the_tiny_model_is_tiled_as_deep_as_the_others():
    assert tiling_of_decoder(VAE).scale == tiling_of_encoder(VAE).scale == 4
