"""The tiny decoder is shown pictures beside their own latents, goes on where it stopped, and decodes previews in the product."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from tests.stages.options import Options
from tests.tiny_models import randomize
from tests.training.tiny_sibling import make_trained_unet
from training import tiny_decoder
from training.cache import cache_folder as folder_of
from training.cache import load_arrays, save_arrays
from training.latents import SEED, measure_whitening, trained_encoder
from training.pictures import drawn_scenes
from training.release import SIBLING, TINY, release
from training.tiny_decoder import SPACE, STAGE, WEIGHTS, LatentsAndPictures, TinyDecoderTraining, space_digest, tiny_config
from training.world.scenes import Grammar
from triptych.checkpoints.diffusers_folder import DiffusersFolder, save_sibling
from triptych.checkpoints.registry import find_model
from triptych.checkpoints.tiny_vae_folder import TinyVAEFolder
from triptych.contract import DecodeRequest
from triptych.models.tiny_vae import build_tiny_decoder
from triptych.stages.decoder import DecoderStage

ROOT = Path(__file__).resolve().parents[2]
SCENES = 12
SHARDS = (0, 3)


def small(images: np.ndarray) -> np.ndarray:
    """Small pixels in the place of latents, (n, 16, 16, 4)."""
    means = images.reshape(len(images), 16, 8, 16, 8, 3).mean(axis=(2, 4)) / 100
    return np.concatenate([means, means[..., :1]], axis=-1).astype(np.float16)


@pytest.fixture
def encoded() -> None:
    """Two shards as `latents` leaves them."""
    for number in SHARDS:
        drawn = drawn_scenes(Grammar.FULL, SCENES, (SEED, number))
        images = drawn.pop("images")
        save_arrays(folder_of("latents") / f"full-{number:04d}.npz", {**drawn, "latents": small(images)})
    save_arrays(folder_of("latents") / "whitening.npz", {"mean": np.full(4, 0.5), "matrix": 2 * np.eye(4)})


@pytest.mark.usefixtures("encoded")
def test_a_batch_has_the_pictures_that_its_latents_were_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_decoder, "NOISE", 0.0)
    monkeypatch.setattr(tiny_decoder, "SHARD", SCENES)
    batches = LatentsAndPictures(Grammar.FULL, rows=SCENES // 2)
    seen = []
    for step in range(5):
        batch = batches(step, np.random.default_rng(step))
        pixels = (batch["images"] + 1) * 127.5
        np.testing.assert_allclose(batch["latents"], (small(pixels).astype(np.float32) - 0.5) * 2, atol=2e-3)
        seen.append({row.tobytes() for row in pixels.round().astype(np.uint8)})
    shards = [{row.tobytes() for row in drawn_scenes(Grammar.FULL, SCENES, (SEED, number))["images"]} for number in SHARDS]
    assert [rows <= shards[0] for rows in seen] == [True, True, False, False, True]
    assert [rows <= shards[1] for rows in seen] == [False, False, True, True, False]


@pytest.mark.usefixtures("encoded")
def test_latents_are_shown_under_a_little_noise() -> None:
    noisy = LatentsAndPictures(Grammar.FULL, rows=8)(0, np.random.default_rng(0))
    clean = (small((noisy["images"] + 1) * 127.5).astype(np.float32) - 0.5) * 2
    assert (noisy["latents"] - clean).std() == pytest.approx(tiny_decoder.NOISE, rel=0.05)


@pytest.mark.usefixtures("encoded")
def test_scenes_that_are_drawn_otherwise_now_are_refused() -> None:
    path = folder_of("latents") / "full-0000.npz"
    shard = load_arrays(path)
    save_arrays(path, {**shard, "boxes": shard["boxes"] + 1})
    with pytest.raises(ValueError, match=r"full-0000\.npz was encoded of other scenes than are drawn now"):
        LatentsAndPictures(Grammar.FULL, rows=2)(0, np.random.default_rng(0))


def test_without_encoded_scenes_there_is_nothing_to_learn_from() -> None:
    with pytest.raises(FileNotFoundError, match="no scenes of the grammar full have been encoded here"):
        LatentsAndPictures(Grammar.FULL, rows=2)


def test_its_blocks_begin_by_adding_nothing() -> None:
    last = [layer for layer in TinyDecoderTraining().decoder.layers if layer.name.endswith(".conv.4")]
    assert len(last) == sum(tiny_config().num_decoder_blocks)
    assert not any(ops.convert_to_numpy(layer.kernel).any() for layer in last)


TWO_RUNS = """
import pytest, numpy as np, tensorflow as tf
from tests.training.tiny_sibling import make_trained_unet
from training import tiny_decoder
from training.cache import cache_folder, load_arrays
from training.latents import cache_latents
from triptych.models.config import TinyVAEConfig

tf.config.run_functions_eagerly(True)  # a few steps: tracing them would take longer than making them
patch = pytest.MonkeyPatch()
make_trained_unet(patch)
config = TinyVAEConfig(decoder_block_out_channels=(8,) * 4, num_decoder_blocks=(1, 1, 0, 0))
patch.setattr(tiny_decoder, "tiny_config", lambda: config)
patch.setattr(tiny_decoder, "reconstruction", lambda *networks: {"networks": [each.name for each in networks]})
cache_latents(scenes=4)
for steps in (2, 3):
    tiny_decoder.train_tiny_decoder(steps=steps, rows=2, rate=0.01)
    assert int(load_arrays(cache_folder(tiny_decoder.STAGE) / "state.npz")["step"]) == steps
progress = (cache_folder(tiny_decoder.STAGE) / "progress.jsonl").read_text()
assert progress.count('"tiny_decoder"') == 2 and "NaN" not in progress, progress
_, learnt = tiny_decoder.build_trained()
begun = tiny_decoder.TinyDecoderTraining().decoder
for before, after in zip(begun.weights, learnt.weights, strict=True):
    assert np.abs(after.numpy() - before.numpy()).max() > 0, after.path
(cache_folder(tiny_decoder.STAGE) / tiny_decoder.SPACE).write_text("another")
with pytest.raises(ValueError, match="trained for another autoencoder"):
    tiny_decoder.train_tiny_decoder(steps=9, rows=2)
"""


def test_a_run_goes_on_where_it_stopped_and_only_for_its_own_autoencoder(cache_folder: Path) -> None:
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TRIPTYCH_CACHE_FOLDER": str(cache_folder)}
    command = [sys.executable, "-c", TWO_RUNS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder of a tiny decoder that has been trained, of random weights."""
    make_trained_unet(monkeypatch)
    decoder, stage = build_tiny_decoder(tiny_config()), folder_of(STAGE)
    randomize(decoder, 11)
    decoder.save_weights(stage / WEIGHTS)
    (stage / SPACE).write_text(space_digest(measure_whitening()))
    return stage


@pytest.mark.usefixtures("trained")
async def test_a_released_one_decodes_the_previews_of_the_model_and_of_its_sibling(tmp_path: Path) -> None:
    released = tmp_path / "model"
    release(released, version=7)
    assert TinyVAEFolder(released / TINY).config == tiny_config()
    save_sibling(released / SIBLING, "vignette-inpainting", "..")
    sibling = DiffusersFolder(released / SIBLING).tiny_vae
    assert sibling is not None and sibling.samefile(released / TINY)

    stage = DecoderStage(Options(model=str(released), cache_folder=tmp_path / "networks", batch_sizes=(1,), exact=False))
    try:
        stage.start()
        latents = np.random.default_rng(1).standard_normal((1, 16, 16, 4), dtype=np.float32)
        preview, picture = [
            np.asarray((await stage.decode(DecodeRequest(latents=latents, preview=preview))).images) for preview in (True, False)
        ]
        assert (await stage.identity()).has_preview_decoder
    finally:
        stage.close()
    assert preview.shape == picture.shape == (1, 128, 128, 3)
    assert (preview != picture).mean() > 0.5


def test_where_none_was_trained_none_is_released(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_trained_unet(monkeypatch)
    release(tmp_path / "model", version=7)
    assert find_model(str(tmp_path / "model")).tiny_vae is None


@pytest.mark.parametrize("change", ["whitening", "encoder"])
def test_one_of_another_autoencoder_is_not_released(trained: Path, tmp_path: Path, change: str) -> None:
    if change == "whitening":
        save_arrays(folder_of("latents") / "whitening.npz", {"mean": np.zeros(4), "matrix": np.eye(4)})
    else:
        other = trained_encoder()
        randomize(other, 99)
        other.save_weights(folder_of("vae") / "encoder.weights.h5")
    with pytest.raises(ValueError, match=r"the tiny decoder was trained for another autoencoder: remove .* and train it again"):
        release(tmp_path / "model", version=8)
    assert trained.exists() and not (tmp_path / "model").exists()


def test_a_release_without_one_does_not_leave_one_of_another_autoencoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_trained_unet(monkeypatch)
    (tmp_path / "model" / TINY).mkdir(parents=True)
    with pytest.raises(ValueError, match="train `tiny-decoder` too, or remove it"):
        release(tmp_path / "model", version=2)
    assert [path.name for path in (tmp_path / "model").iterdir()] == [TINY]
