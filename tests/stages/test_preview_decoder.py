"""Previews by a tiny decoder, pictures by the VAE."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import randomize, run_network, write_tiny_model
from triptych.checkpoints.diffusers_folder import save_json
from triptych.checkpoints.tiny_vae_folder import TinyVAEFolder
from triptych.checkpoints.weights import half_precision_file
from triptych.contract import DecodeRequest, ImageFormat
from triptych.errors import CheckpointError
from triptych.models.config import TinyVAEConfig
from triptych.models.tiny_vae import build_tiny_decoder
from triptych.stages.decoder import DecoderStage
from triptych.stages.images import to_pixels

CONFIG = TinyVAEConfig(decoder_block_out_channels=(16,) * 4, num_decoder_blocks=(1, 1, 1, 1))
LATENTS = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float32)


def write_tiny_vae(folder: Path, config: TinyVAEConfig = CONFIG) -> Path:
    decoder = build_tiny_decoder(config)
    randomize(decoder, seed=5)
    save_json(folder / "config.json", {"_class_name": "AutoencoderTiny", **config.to_dict()})
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(half_precision_file([decoder]))
    return folder


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory) -> Path:
    return write_tiny_vae(tmp_path_factory.mktemp("tiny_vae"))


@pytest.fixture(scope="module")
def plain(options) -> Iterator[DecoderStage]:
    yield from started(options)


@pytest.fixture(scope="module")
def stage(options, tiny_vae) -> Iterator[DecoderStage]:
    yield from started(replace(options, preview_decoder=tiny_vae))


def started(options) -> Iterator[DecoderStage]:
    stage = DecoderStage(options)
    stage.start()
    yield stage
    stage.close()


async def decoded(stage, *, preview: bool, latents=LATENTS) -> np.ndarray:
    return (await stage.decode(DecodeRequest(latents=latents, preview=preview))).images


async def test_a_preview_is_the_tiny_decoders(stage, tiny_vae):
    expected = run_network(TinyVAEFolder(tiny_vae).load_decoder(), {"latents": LATENTS})["images"]
    difference = (await decoded(stage, preview=True)).astype(int) - to_pixels(expected)
    assert np.abs(difference).max() <= 1
    assert to_pixels(expected).std() > 10


async def test_a_picture_is_the_vaes_as_if_there_were_no_other(stage, plain):
    np.testing.assert_array_equal(await decoded(stage, preview=False), await decoded(plain, preview=False))
    ours, without = await stage.identity(), await plain.identity()
    assert ours == replace(without, has_preview_decoder=True)


async def test_where_there_is_none_the_vae_makes_previews_too(plain):
    np.testing.assert_array_equal(await decoded(plain, preview=True), await decoded(plain, preview=False))


async def test_previews_are_files_like_others(stage):
    request = DecodeRequest(latents=LATENTS, image_format=ImageFormat.JPEG, preview=True)
    assert all(file.startswith(b"\xff\xd8") for file in (await stage.decode(request)).images)


async def test_a_models_own_is_found_in_its_folder(options, tiny_vae, tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    shutil.copytree(tiny_vae, folder / "tiny_vae")
    for stage in started(replace(options, model=str(folder))):
        assert (await stage.identity()).has_preview_decoder


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replace(CONFIG, latent_channels=8), "latents of 8 channels, 8 pixels each.*the model's VAE has 4, 8 and 3"),
        (TinyVAEConfig(decoder_block_out_channels=(16,) * 3, num_decoder_blocks=(1,) * 3), "4 channels, 4 pixels each"),
    ],
)
def test_one_of_other_latents_is_refused(options, tmp_path, config, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        DecoderStage(replace(options, preview_decoder=write_tiny_vae(tmp_path, config))).start()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"_class_name": "AutoencoderKL"}, "our tiny VAE wants _class_name to be 'AutoencoderTiny'"),
        ({"act_fn": "mish"}, "act_fn to be 'relu'"),
        ({"upsampling_scaling_factor": 3}, "upsampling_scaling_factor to be 2"),
        ({"decoder_block_out_channels": [64, 64, 32, 32]}, "they must all be alike"),
        ({"num_decoder_blocks": [3, 3, 1]}, "as many as num_decoder_blocks"),
        ({"num_decoder_blocks": 3}, "must be a list of whole numbers, none below 0"),
        ({"num_decoder_blocks": [3, 3, 3, -1]}, "must be a list of whole numbers, none below 0"),
    ],
)
def test_configurations_of_others_are_refused(values, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        TinyVAEConfig.from_dict({"_class_name": "AutoencoderTiny", **values})


def test_folders_that_hold_none_are_refused(tmp_path, tiny_vae):
    with pytest.raises(CheckpointError, match=r"there is no .*config\.json"):
        _ = TinyVAEFolder(tmp_path).config
    shutil.copy(tiny_vae / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no .*\.safetensors"):
        TinyVAEFolder(tmp_path).load_decoder()
    with pytest.raises(CheckpointError, match="cannot be read"):
        TinyVAEFolder(tmp_path).weights_digest()
