"""The trained networks as a model's folder, in half precision."""

from __future__ import annotations

from pathlib import Path

from training.cache import cache_folder, report
from training.decoder import WEIGHTS as DECODER_WEIGHTS
from training.latents import measure_whitening, whitened_vae
from training.text import text_config
from training.unet import TEXT_WEIGHTS, trained_stage, unet_config
from training.unet import WEIGHTS as UNET_WEIGHTS
from training.vae import vae_config
from training.world.captions import all_words
from triptych.checkpoints.checkpoint import ModelFacts
from triptych.checkpoints.diffusers_folder import save_description, save_network
from triptych.checkpoints.registry import EMBEDDED, find_model
from triptych.models.text_encoder import build_text_encoder
from triptych.models.unet import build_unet

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
    """
    version = version or next_version()
    folder, stage = folder or EMBEDDED["vignette"], cache_folder(trained_stage())
    encoder, decoder = whitened_vae(measure_whitening())
    if (tuned := cache_folder("decoder") / DECODER_WEIGHTS).exists():
        decoder.load_weights(tuned)
    save_network(folder, "vae", vae_config(), encoder, decoder)
    text_encoder, unet = build_text_encoder(text_config()), build_unet(unet_config())
    text_encoder.load_weights(stage / TEXT_WEIGHTS)
    unet.load_weights(stage / UNET_WEIGHTS)
    save_network(folder, "text_encoder", text_config(), text_encoder)
    save_network(folder, "unet", unet_config(), unet)
    for path in cache_folder("tokenizer").iterdir():
        if path.suffix in (".json", ".txt"):
            (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
            (folder / "tokenizer" / path.name).write_bytes(path.read_bytes())
    save_description(folder, facts(version), SCHEDULER)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    report("release", folder=folder.name, megabytes=round(size / 1e6, 2))
