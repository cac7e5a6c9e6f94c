"""The trained networks as a model's folder, in half precision.

The tiny decoder of previews and the inpainting sibling, where they were trained, in folders within.
"""

from __future__ import annotations

from pathlib import Path

import keras

from training import inpainting, tiny_decoder
from training.cache import cache_folder, report
from training.decoder import WEIGHTS as DECODER_WEIGHTS
from training.latents import Whitening, measure_whitening, whitened_vae
from training.text import text_config
from training.unet import TEXT_WEIGHTS, load_shape, trained_stage
from training.unet import WEIGHTS as UNET_WEIGHTS
from training.vae import vae_config
from training.world.captions import all_words
from triptych.checkpoints.checkpoint import ModelFacts
from triptych.checkpoints.diffusers_folder import save_description, save_network, save_sibling
from triptych.checkpoints.registry import EMBEDDED, find_model
from triptych.models.text_encoder import build_text_encoder
from triptych.models.unet import build_unet

SIBLING = "inpainting"  # its folder within the model's
TINY = "tiny_vae"
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "clip_sample": False,
    "rescale_betas_zero_snr": False,
}


def facts(version: int) -> ModelFacts:
    """What the networks do not say themselves. The version names the spaces: count it up when VAE or text encoder change."""
    return ModelFacts(
        model="vignette",
        latent_space=f"vignette-{version}",
        text_space=f"vignette-{version}",
        sizes=((128, 128),),
        sampler="ddim",
        num_steps=25,
        guidance_scale=2.0,
        words=all_words(),
    )


def next_version() -> int:
    """The one after the package's."""
    return int(find_model("vignette").facts.latent_space.removeprefix("vignette-")) + 1


def release(folder: Path | None = None, *, version: int | None = None) -> None:
    """Writes the model; into the package unless another folder is named.

    Args:
        folder: Where to.
        version: Names the spaces of latents and contexts; the one after the package's unless told.

    Raises:
        ValueError: There is a sibling that would not share them, or a tiny decoder of others.
    """
    version = version or next_version()
    folder, stage = folder or EMBEDDED["vignette"], cache_folder(trained_stage())
    whitening = measure_whitening()
    text_encoder, config = build_text_encoder(text_config()), load_shape(stage)
    text_encoder.load_weights(stage / TEXT_WEIGHTS)
    _check_sibling(folder, text_encoder, whitening)
    _check_tiny_decoder(folder, whitening)
    encoder, decoder = whitened_vae(whitening)
    if (tuned := cache_folder("decoder") / DECODER_WEIGHTS).exists():
        decoder.load_weights(tuned)
    save_network(folder, "vae", vae_config(), encoder, decoder)
    if tiny_decoder.was_trained():
        save_network(folder, TINY, *tiny_decoder.build_trained())
    unet = build_unet(config)
    unet.load_weights(stage / UNET_WEIGHTS)
    save_network(folder, "text_encoder", text_config(), text_encoder)
    save_network(folder, "unet", config, unet)
    for path in cache_folder("tokenizer").iterdir():
        if path.suffix in (".json", ".txt"):
            (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
            (folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
    save_description(folder, facts(version), SCHEDULER)
    if _has_sibling():
        save_network(folder / SIBLING, "unet", *inpainting.build_trained())
        save_sibling(folder / SIBLING, "vignette-inpainting", "..")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    report("release", folder=folder.name, megabytes=round(size / 1e6, 2))


def _has_sibling() -> bool:
    return (cache_folder(inpainting.STAGE) / UNET_WEIGHTS).exists()


def _check_sibling(folder: Path, text_encoder: keras.Model, whitening: Whitening) -> None:
    """Both models share all but their U-Nets, so they are released together.

    Raises:
        ValueError: The sibling was trained with something else; or the folder has one and none was trained here.
    """
    if _has_sibling():
        inpainting.refuse_other_spaces(text_encoder, whitening)
    elif (folder / SIBLING).exists():
        raise ValueError(
            f"{folder / SIBLING} shares the text encoder and the autoencoder that this release would replace: "
            "train `inpainting` too, or remove it"
        )


def _check_tiny_decoder(folder: Path, whitening: Whitening) -> None:
    """It decodes the latents of one autoencoder, so they are released together.

    Raises:
        ValueError: It was trained for another one; or the folder has one and none was trained here.
    """
    if tiny_decoder.was_trained():
        tiny_decoder.refuse_other_space(whitening)
    elif (folder / TINY).exists():
        raise ValueError(
            f"{folder / TINY} decodes latents of the autoencoder that this release would replace: "
            "train `tiny-decoder` too, or remove it"
        )
