"""What the stages before `inpainting` leave in the cache, with tiny networks of random weights.

As a program it trains their sibling in two runs, in a process of its own: training wants another backend than the tests.
"""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops

from tests.tiny_models import randomize
from training import latents, release, text, unet
from training.cache import cache_folder, load_arrays, save_arrays
from training.inpainting import STAGE, build_trained, train_inpainting, widened
from training.masked_latents import cache_masked_latents
from training.tokenizer import train_tokenizer
from training.unet import TEXT_WEIGHTS, WEIGHTS, save_shape
from training.world.scenes import Grammar
from triptych.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from triptych.models.text_encoder import build_text_encoder
from triptych.models.unet import build_unet
from triptych.models.vae import build_vae_decoder, build_vae_encoder

UNET = UNetConfig(
    block_out_channels=(16,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=32,
    norm_num_groups=8,
)
VAE = VAEConfig(
    block_out_channels=(8, 8, 8, 8),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1,
    norm_num_groups=4,
    scaling_factor=1.0,
)
LARGE_TEXT_CONFIG = text.text_config


def text_config() -> CLIPTextConfig:
    return replace(LARGE_TEXT_CONFIG(), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


def make_trained_unet(patch: pytest.MonkeyPatch) -> keras.Model:
    """Makes the recipe's networks tiny, and the cache what it is when a U-Net has been trained; returns that."""
    for module in (latents, release, unet):
        for name, tiny in (("vae_config", lambda: VAE), ("text_config", text_config)):
            if hasattr(module, name):
                patch.setattr(module, name, tiny)
    train_tokenizer()
    origin = cache_folder(f"unet-{Grammar.FULL}")
    network = build_unet(UNET)
    places = {
        cache_folder("vae") / "encoder.weights.h5": build_vae_encoder(VAE),
        cache_folder("vae") / "decoder.weights.h5": build_vae_decoder(VAE),
        origin / TEXT_WEIGHTS: build_text_encoder(text_config()),
        origin / WEIGHTS: network,
    }
    for seed, (path, each) in enumerate(places.items()):
        randomize(each, seed)
        each.save_weights(path)
    save_shape(origin, UNET)
    save_arrays(cache_folder("latents") / "whitening.npz", {"mean": np.full(4, 0.1), "matrix": 0.9 * np.eye(4)})
    return network


def main() -> None:
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)  # a few steps: tracing them would take longer than making them
    plain = make_trained_unet(pytest.MonkeyPatch())
    cache_masked_latents(scenes=6)
    for steps in (2, 3):
        train_inpainting(steps=steps, rows=2, rate=0.01, ema=0.5)
        assert int(load_arrays(cache_folder(STAGE) / "state.npz")["step"]) == steps
    progress = (cache_folder(STAGE) / "progress.jsonl").read_text()
    assert progress.count("begins_with") == 1, progress
    config, learnt = build_trained()
    begun = widened(plain, config)
    before, after = (ops.convert_to_numpy(network.get_layer("conv_in").kernel) for network in (begun, learnt))
    assert before.shape[2] == 9 and (np.abs(after - before).max(axis=(0, 1, 3)) > 0).all()


if __name__ == "__main__":
    main()
