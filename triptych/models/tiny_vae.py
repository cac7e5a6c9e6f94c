"""A tiny decoder of latents, for previews: TAESD, which is diffusers' AutoencoderTiny (https://github.com/madebyollin/taesd)."""

from __future__ import annotations

import keras
from keras import ops

from triptych.models.config import TinyVAEConfig
from triptych.models.layers import ImageLayers


def build_tiny_decoder(config: TinyVAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """Latents to rough pictures.

    Inputs: `latents` (B, H/8, W/8, 4), multiplied by the VAE's scaling factor, which is how diffusers calls it too.
    Outputs: `images` (B, H, W, 3), about [-1, 1], not clipped.
    """
    net = ImageLayers(data_format=data_format, kernel_initializer=kernel_initializer, norm_num_groups=None, norm_eps=None)
    latents = keras.Input((None, None, config.latent_channels), name="latents")
    names = (f"decoder.layers.{place}" for place in range(config.num_decoder_layers))
    x = net.enter(3 * ops.tanh(latents / config.scaling_factor / 3))  # what is far out is brought in
    x = ops.relu(net.conv(x, next(names), config.width))
    next(names)  # torch counts activations too
    for level, num_blocks in enumerate(config.num_decoder_blocks):
        is_last = level == len(config.num_decoder_blocks) - 1
        for _ in range(num_blocks):
            x = _block(net, x, next(names))
        if is_last:
            x = net.conv(x, next(names), config.out_channels)
        else:
            next(names)
            x = net.upsampling_conv(x, next(names), config.width, use_bias=False)
    return keras.Model({"latents": latents}, {"images": net.leave(2 * x - 1)}, name="tiny_decoder")


def _block(net, x, name):
    h = x
    for place in (0, 2, 4):
        h = net.conv(h if place == 0 else ops.relu(h), f"{name}.conv.{place}", net.channels(x))
    return ops.relu(h + x)
