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
    net = VAELayers(config, data_format, kernel_initializer)
    images = keras.Input((None, None, config.in_channels), name="images")
    x = net.down(net.conv_of_images(images), range(net.num_levels))
    return keras.Model({"images": images}, net.distribution(x), name="vae_encoder")


def build_vae_decoder(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """Latents to pictures.

    Inputs: `latents` (B, H/8, W/8, 4), multiplied by the scaling factor.
    Outputs: `images` (B, H, W, 3), about [-1, 1], not clipped.
    """
    net = VAELayers(config, data_format, kernel_initializer)
    latents = keras.Input((None, None, config.latent_channels), name="latents")
    x = net.up(net.middle_of_latents(latents), range(net.num_levels))
    return keras.Model({"latents": latents}, {"images": net.images(net.last_norm(x))}, name="vae_decoder")


class VAELayers(ImageLayers):
    """Makes the parts of a VAE. Levels are counted in the order in which a half runs them, each one size of the image."""

    def __init__(self, config: VAEConfig, data_format, kernel_initializer):
        super().__init__(
            data_format=data_format,
            kernel_initializer=kernel_initializer,
            norm_num_groups=config.norm_num_groups,
            norm_eps=config.norm_eps,
        )
        self.config = config
        self.num_levels = len(config.block_out_channels)

    # The encoder

    def conv_of_images(self, images):
        return self.conv(self.enter(images), "encoder.conv_in", self.config.block_out_channels[0])

    def down(self, x, levels):
        """Some levels of the encoder, each with the way to the next."""
        for level in levels:
            block = f"encoder.down_blocks.{level}"
            for i in range(self.config.layers_per_block):
                x = self.resnet(x, f"{block}.resnets.{i}", self.config.block_out_channels[level])
            if level < self.num_levels - 1:
                x = self.downsample(x, f"{block}.downsamplers.0", padding=(0, 1))
        return x

    def distribution(self, x):
        """What comes after the levels of the encoder."""
        channels = 2 * self.config.latent_channels
        x = self.middle(x, "encoder.mid_block")
        x = ops.silu(self.norm(x, "encoder.conv_norm_out"))
        x = self.conv(x, "encoder.conv_out", channels)
        mean, logvar = ops.split(self.leave(self.conv(x, "quant_conv", channels, 1)), 2, axis=-1)
        # The bounds of diffusers: outside them the variance is useless in any precision.
        return {"mean": mean, "logvar": ops.clip(logvar, -30.0, 20.0)}

    # The decoder

    def middle_of_latents(self, latents):
        """What comes before the levels of the decoder."""
        x = self.enter(latents / self.config.scaling_factor)
        x = self.conv(x, "post_quant_conv", self.config.latent_channels, 1)
        x = self.conv(x, "decoder.conv_in", self.config.block_out_channels[-1])
        return self.middle(x, "decoder.mid_block")

    def up(self, x, levels):
        """Some levels of the decoder, each with the way from the one before."""
        for level in levels:
            if level > 0:
                x = self.upsample(x, f"decoder.up_blocks.{level - 1}.upsamplers.0")
            for i in range(self.config.layers_per_block + 1):
                x = self.resnet(x, f"decoder.up_blocks.{level}.resnets.{i}", self.config.block_out_channels[-1 - level])
        return x

    def last_norm(self, x):
        return self.norm(x, "decoder.conv_norm_out")

    def images(self, x):
        return self.leave(self.conv(ops.silu(x), "decoder.conv_out", self.config.out_channels))

    # Both

    def middle(self, x, name):
        channels = self.channels(x)
        x = self.resnet(x, f"{name}.resnets.0", channels)
        tokens = self.to_tokens(self.norm(x, f"{name}.attentions.0.group_norm"))
        tokens = self.attention(tokens, tokens, f"{name}.attentions.0", num_heads=1, use_bias=True)
        x = x + self.to_image(tokens, like=x)
        return self.resnet(x, f"{name}.resnets.1", channels)
