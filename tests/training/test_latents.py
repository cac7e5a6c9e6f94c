"""Whitening changes the latents as it says, and the pictures not at all."""

from __future__ import annotations

import numpy as np
import pytest

from training.latents import Whitening, fold_whitening
from triptych.models.config import VAEConfig
from triptych.models.vae import build_vae_decoder, build_vae_encoder


# Keras compares the names of a single named input with themselves, and finds them different.
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_folded_whitening_moves_the_latents_and_leaves_the_pictures() -> None:
    config = VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0)
    encoder, decoder = build_vae_encoder(config), build_vae_decoder(config)
    rng = np.random.default_rng(0)
    for layer in (encoder.get_layer("quant_conv"), decoder.get_layer("post_quant_conv")):
        layer.bias.assign(rng.standard_normal(layer.bias.shape).astype(np.float32))
    root = rng.standard_normal((4, 4))
    matrix = (root @ root.T / 4 + np.eye(4)).astype(np.float32)
    whitening = Whitening(mean=rng.standard_normal(4).astype(np.float32), matrix=matrix)
    images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)

    before = np.asarray(encoder.predict_on_batch({"images": images})["mean"])
    picture = np.asarray(decoder.predict_on_batch({"latents": before})["images"])
    fold_whitening(encoder, decoder, whitening)
    after = np.asarray(encoder.predict_on_batch({"images": images})["mean"])

    np.testing.assert_allclose(after, whitening(before), atol=1e-4)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(np.asarray(decoder.predict_on_batch({"latents": after})["images"]), picture, atol=1e-3)
