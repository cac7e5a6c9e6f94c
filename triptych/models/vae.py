"""The variational autoencoder (KL) of latent diffusion, as two networks (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

import keras
from keras import ops

from triptych.models.config import VAEConfig
from triptych.models.layers import ImageLayers


def build_vae_encoder(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """Pictures to the distribution of their latents.

    Inputs: `images` (B, H, W, 3) in [-1, 1].
    Outputs: `mean`, `logvar` (B, H/8, W/8, 4), not yet multiplied by the scaling factor.
    """
    net = _image_layers(config, data_format, kernel_initializer)
    images = keras.Input((None, None, config.in_channels), name="images")
    widths = config.block_out_channels
    x = net.conv(net.enter(images), "encoder.conv_in", widths[0])
    for level, channels in enumerate(widths):
        block = f"encoder.down_blocks.{level}"
        for i in range(config.layers_per_block):
            x = net.resnet(x, f"{block}.resnets.{i}", channels)
        if level < len(widths) - 1:
            x = net.downsample(x, f"{block}.downsamplers.0", padding=(0, 1))
    x = _mid_block(net, x, "encoder.mid_block")
    x = ops.silu(net.norm(x, "encoder.conv_norm_out"))
    x = net.conv(x, "encoder.conv_out", 2 * config.latent_channels)
    x = net.leave(net.conv(x, "quant_conv", 2 * config.latent_channels, 1))
    mean, logvar = ops.split(x, 2, axis=-1)
    # The bounds of diffusers: outside them the variance is useless in any precision.
    return keras.Model({"images": images}, {"mean": mean, "logvar": ops.clip(logvar, -30.0, 20.0)}, name="vae_encoder")


def build_vae_decoder(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """Latents to pictures.

    Inputs: `latents` (B, H/8, W/8, 4), multiplied by the scaling factor.
    Outputs: `images` (B, H, W, 3), about [-1, 1], not clipped.
    """
    net = _image_layers(config, data_format, kernel_initializer)
    latents = keras.Input((None, None, config.latent_channels), name="latents")
    widths = config.block_out_channels[::-1]
    x = net.conv(net.enter(latents / config.scaling_factor), "post_quant_conv", config.latent_channels, 1)
    x = net.conv(x, "decoder.conv_in", widths[0])
    x = _mid_block(net, x, "decoder.mid_block")
    for level, channels in enumerate(widths):
        block = f"decoder.up_blocks.{level}"
        for i in range(config.layers_per_block + 1):
            x = net.resnet(x, f"{block}.resnets.{i}", channels)
        if level < len(widths) - 1:
            x = net.upsample(x, f"{block}.upsamplers.0")
    x = ops.silu(net.norm(x, "decoder.conv_norm_out"))
    x = net.leave(net.conv(x, "decoder.conv_out", config.out_channels))
    return keras.Model({"latents": latents}, {"images": x}, name="vae_decoder")


def _image_layers(config, data_format, kernel_initializer) -> ImageLayers:
    return ImageLayers(
        data_format=data_format,
        kernel_initializer=kernel_initializer,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
    )


def _mid_block(net: ImageLayers, x, name):
    channels = net.channels(x)
    x = net.resnet(x, f"{name}.resnets.0", channels)
    tokens = net.to_tokens(net.norm(x, f"{name}.attentions.0.group_norm"))
    tokens = net.attention(tokens, tokens, f"{name}.attentions.0", num_heads=1, use_bias=True)
    x = x + net.to_image(tokens, like=x)
    return net.resnet(x, f"{name}.resnets.1", channels)
