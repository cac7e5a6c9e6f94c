"""The sibling begins as vignette, is shown what the product shows it, goes on where it stopped, and inpaints in the product."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from tests.stages.options import Options
from tests.tiny_models import INPAINTING_UNET, UNET, randomize, run_network
from tests.training import tiny_sibling
from tests.training.tiny_sibling import make_trained_unet
from training.cache import cache_folder as folder_of
from training.cache import save_arrays
from training.inpainting import MASK_WEIGHT, SPACES, STAGE, MaskedBatches, mask_weights, spaces_digest, widened
from training.latents import measure_whitening
from training.masked_latents import MaskedLatents, load_masked_latents
from training.masks import latent_mask
from training.pictures import masked_scenes
from training.release import SIBLING, release
from training.tokenizer import train_tokenizer
from training.unet import BOX_WEIGHT, TEXT_WEIGHTS, WEIGHTS, place_weights, save_shape, unet_config
from training.world.scenes import Grammar
from triptych.checkpoints.registry import EMBEDDED, find_model
from triptych.contract import DecodeRequest, Denoised, DenoiseRequest, EncodeImagesRequest, EncodeRequest
from triptych.models.text_encoder import build_text_encoder
from triptych.models.unet import build_unet
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.fit import check_fit
from triptych.stages.image_encoder import ImageEncoderStage
from triptych.stages.text_encoder import TextEncoderStage

ROOT = Path(__file__).resolve().parents[2]


def test_the_sibling_predicts_at_first_what_vignette_predicts_whatever_it_is_shown_beside() -> None:
    plain = build_unet(UNET)
    randomize(plain, 3)
    wide = widened(plain, INPAINTING_UNET)
    rng = np.random.default_rng(0)
    latents, beside = (rng.standard_normal((2, 4, 4, channels), dtype=np.float32) for channels in (4, 5))
    inputs = {"timestep": np.array([3, 900], np.float32), "context": rng.standard_normal((2, 6, 32), dtype=np.float32)}
    expected = run_network(plain, {**inputs, "latents": latents})["prediction"]
    shown = np.concatenate([latents, beside], axis=-1)
    np.testing.assert_array_equal(run_network(wide, {**inputs, "latents": shown})["prediction"], expected)
    kernel = ops.convert_to_numpy(wide.get_layer("conv_in").kernel)
    assert kernel.shape[2] == 9 and not kernel[:, :, 4:].any() and kernel[:, :, :4].any()


@pytest.fixture
def scenes() -> MaskedLatents:
    """Two shards as `masked-latents` leaves them, small pixels in the place of latents."""
    for shard in (0, 1):
        drawn = masked_scenes(Grammar.FULL, 12, (23, shard))
        images, masks = drawn.pop("images"), drawn.pop("masks")
        small = images.reshape(12, 16, 8, 16, 8, 3).mean(axis=(2, 4)) / 100
        latents = np.concatenate([small, small[..., :1]], axis=-1).astype(np.float16)
        arrays = {"latents": latents, "masked": -latents, "masks": latent_mask(masks)}
        save_arrays(folder_of("masked-latents") / f"full-{shard:04d}.npz", {**drawn, **arrays})
    save_arrays(folder_of("latents") / "whitening.npz", {"mean": np.full(4, 0.5), "matrix": 2 * np.eye(4)})
    train_tokenizer()
    return load_masked_latents(Grammar.FULL)


def test_a_batch_is_of_white_latents_with_their_masks_and_what_these_leave(scenes: MaskedLatents) -> None:
    assert len(scenes.latents) == 24
    batch = MaskedBatches(scenes, 8)(0, np.random.default_rng(0))
    assert {name: array.shape[1:] for name, array in batch.items()} == {
        "latents": (16, 16, 4),
        "noise": (16, 16, 4),
        "masked": (16, 16, 4),
        "mask": (16, 16, 1),
        "weight": (16, 16, 1),
        "timestep": (),
        "alpha": (1, 1, 1),
        "sigma": (1, 1, 1),
        "tokens": (32,),
    }
    assert {len(array) for array in batch.values()} == {8}
    known = {((row.astype(np.float32) - 0.5) * 2).tobytes(): i for i, row in enumerate(scenes.latents)}
    for i, row in enumerate(batch["latents"]):
        pick = known[row.tobytes()]
        np.testing.assert_array_equal(batch["masked"][i], (scenes.masked[pick].astype(np.float32) - 0.5) * 2)
        np.testing.assert_array_equal(batch["mask"][i], scenes.masks[pick])
        places = place_weights(scenes.boxes[pick])
        np.testing.assert_allclose(batch["weight"][i], mask_weights(batch["mask"][i], places))


def test_errors_weigh_more_inside_the_mask_and_most_where_a_thing_is() -> None:
    masks, places = np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, BOX_WEIGHT, 1.0, BOX_WEIGHT])
    np.testing.assert_array_equal(mask_weights(masks, places), [1, 1, MASK_WEIGHT, MASK_WEIGHT * BOX_WEIGHT])


def test_both_models_of_a_run_from_zero_fit_into_30_megabytes() -> None:
    train_tokenizer()
    parameters = sum(build_unet(replace(unet_config(), in_channels=channels)).count_params() for channels in (4, 9))
    package = EMBEDDED["vignette"]
    rest = sum(path.stat().st_size for part in ("vae", "text_encoder") for path in (package / part).glob("*.safetensors"))
    assert 28e6 < 2 * parameters + rest < 30e6


def test_a_run_goes_on_where_it_stopped_and_learns_of_every_channel(cache_folder: Path) -> None:
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TRIPTYCH_CACHE_FOLDER": str(cache_folder)}
    command = [sys.executable, "-m", "tests.training.tiny_sibling"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder of a sibling that has been trained, of random weights."""
    make_trained_unet(monkeypatch)
    shape, stage = replace(tiny_sibling.UNET, in_channels=9), folder_of(STAGE)
    sibling, text_encoder = build_unet(shape), build_text_encoder(tiny_sibling.text_config())
    randomize(sibling, 9)
    sibling.save_weights(stage / WEIGHTS)
    save_shape(stage, shape)
    text_encoder.load_weights(folder_of(f"unet-{Grammar.FULL}") / TEXT_WEIGHTS)
    (stage / SPACES).write_text(spaces_digest(text_encoder, measure_whitening()))
    return stage


@pytest.mark.usefixtures("trained")
async def test_a_released_sibling_inpaints_with_the_other_models_ends(tmp_path: Path) -> None:
    released = tmp_path / "model"
    release(released, version=7)
    whole, sibling = find_model(str(released)), find_model(str(released / SIBLING))
    assert sibling.facts == replace(whole.facts, model="vignette-inpainting")
    assert sibling.unet == replace(whole.unet, in_channels=9)
    assert sorted(path.name for path in (released / SIBLING).iterdir()) == ["triptych.json", "unet"]
    check_fit(sibling)

    options = Options(model=str(released), cache_folder=tmp_path / "networks", batch_sizes=(2,), exact=False)
    ends = TextEncoderStage(options), ImageEncoderStage(options), DecoderStage(options)
    diffusion = DiffusionStage(replace(options, model=str(released / SIBLING)))
    stages = (*ends, diffusion)
    try:
        for stage in stages:
            stage.start()
        text_encoder, image_encoder, decoder = ends
        image = np.random.default_rng(1).integers(0, 256, (1, 128, 128, 3), dtype=np.uint8)
        mask = np.zeros((1, 128, 128), np.uint8)
        mask[:, 32:96, 32:96] = 255
        context = (await text_encoder.encode(EncodeRequest(prompts=("a red heart",)))).context
        masked = (await image_encoder.encode_images(EncodeImagesRequest(images=image, mask=mask))).latents
        request = DenoiseRequest(
            context=context,
            unconditional_context=None,
            seeds=np.array([1], np.uint64),
            width=128,
            height=128,
            sampler="ddim",
            num_steps=2,
            guidance_scale=1.0,
            mask=latent_mask(mask).astype(np.float32),
            masked_image_latents=masked,
        )
        (denoised,) = [event async for event in diffusion.denoise(request) if isinstance(event, Denoised)]
        answer = await decoder.decode(DecodeRequest(latents=denoised.latents, original=image, paste_mask=mask))
    finally:
        for stage in stages:
            stage.close()
    painted = np.asarray(answer.images)
    kept = mask == 0
    np.testing.assert_array_equal(painted[kept], image[kept])
    assert (painted[~kept] != image[~kept]).mean() > 0.9


@pytest.mark.parametrize("change", ["whitening", "text encoder"])
def test_a_sibling_of_other_spaces_is_not_released(trained: Path, tmp_path: Path, change: str) -> None:
    if change == "whitening":
        save_arrays(folder_of("latents") / "whitening.npz", {"mean": np.zeros(4), "matrix": np.eye(4)})
    else:
        other = build_text_encoder(tiny_sibling.text_config())
        randomize(other, 99)
        other.save_weights(folder_of(f"unet-{Grammar.FULL}") / TEXT_WEIGHTS)
    with pytest.raises(ValueError, match="trained with another text encoder or autoencoder"):
        release(tmp_path / "model", version=8)
    assert trained.exists() and not (tmp_path / "model").exists()


def test_a_release_without_a_sibling_does_not_replace_the_ends_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_trained_unet(monkeypatch)
    (tmp_path / "model" / SIBLING).mkdir(parents=True)
    with pytest.raises(ValueError, match="train `inpainting` too, or remove it"):
        release(tmp_path / "model", version=2)
    assert [path.name for path in (tmp_path / "model").iterdir()] == [SIBLING]
