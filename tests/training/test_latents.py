"""Whitening changes the latents as it says, and what the decoder makes of them not at all."""

from __future__ import annotations

import numpy as np
from keras import ops

from training.latents import Whitening, fold_whitening
from triptych.models.config import VAEConfig
from triptych.models.vae import build_vae_decoder, build_vae_encoder


def apply(layer: object, x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution on numbers of one position each."""
    return x @ ops.convert_to_numpy(layer.kernel)[0, 0] + ops.convert_to_numpy(layer.bias)  # type: ignore[attr-defined]


def test_folded_whitening_moves_the_latents_and_leaves_what_the_decoder_sees() -> None:
    config = VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0)
    encoder, decoder = build_vae_encoder(config), build_vae_decoder(config)
    quant, post_quant = encoder.get_layer("quant_conv"), decoder.get_layer("post_quant_conv")
    rng = np.random.default_rng(0)
    for layer in (quant, post_quant):
        layer.bias.assign(rng.standard_normal(layer.bias.shape).astype(np.float32))
    root = rng.standard_normal((4, 4))
    matrix = (root @ root.T / 4 + np.eye(4)).astype(np.float32)
    whitening = Whitening(mean=rng.standard_normal(4).astype(np.float32), matrix=matrix)

    features = rng.standard_normal((50, 8)).astype(np.float32)
    before = apply(quant, features)[:, :4]
    seen = apply(post_quant, before)
    fold_whitening(encoder, decoder, whitening)
    after = apply(quant, features)[:, :4]

    np.testing.assert_allclose(after, whitening(before), atol=1e-4)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(apply(post_quant, after), seen, atol=1e-4)
