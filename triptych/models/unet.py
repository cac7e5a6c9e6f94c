"""The U-Net of latent diffusion, which predicts the noise in latents for a text (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import layers, ops

from triptych.models.config import UNetConfig
from triptych.models.layers import ImageLayers, layer_norm


def build_unet(config: UNetConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """The U-Net.

    Inputs: `latents` (B, H/8, W/8, C), `timestep` (B,) in 0..999 and not necessarily whole, `context` (B, T, D).
    Outputs: `prediction` (B, H/8, W/8, 4).
    """
    net = UNetLayers(config, data_format, kernel_initializer)
    latents = keras.Input((None, None, config.in_channels), name="latents")
    timestep = keras.Input((), name="timestep")
    context = keras.Input((None, config.cross_attention_dim), name="context")

    time = net.time_embedding(timestep)
    x = net.conv(net.enter(latents), "conv_in", config.block_out_channels[0])
    x, skips = net.down(x, time, context)
    x = net.middle(x, time, context)
    x = net.up(x, skips, time, context)
    x = ops.silu(net.norm(x, "conv_norm_out"))
    prediction = net.leave(net.conv(x, "conv_out", config.out_channels))

    inputs = {"latents": latents, "timestep": timestep, "context": context}
    return keras.Model(inputs, {"prediction": prediction}, name="unet")


class UNetLayers(ImageLayers):
    """Makes the parts of a U-Net. A level is a size of the image: level 0 is the latents' own, each next one half of it."""

    def __init__(self, config: UNetConfig, data_format, kernel_initializer):
        super().__init__(
            data_format=data_format,
            kernel_initializer=kernel_initializer,
            norm_num_groups=config.norm_num_groups,
            norm_eps=config.norm_eps,
        )
        self.config = config
        self.last_level = len(config.block_out_channels) - 1

    def time_embedding(self, timestep):
        """What every residual block hears of the timestep, (B, D)."""
        width = self.config.block_out_channels[0]
        x = TimestepWaves(width, self.config.flip_sin_to_cos, self.config.freq_shift, name="time_proj")(timestep)
        x = self.dense(x, "time_embedding.linear_1", 4 * width)
        x = self.dense(ops.silu(x), "time_embedding.linear_2", 4 * width)
        return ops.silu(x)  # the blocks of diffusers do this each for itself

    def down(self, x, time, context):
        """The way down, and the features that the way up will want, in the order in which they were made."""
        skips = [x]
        for level, channels in enumerate(self.config.block_out_channels):
            block = f"down_blocks.{level}"
            for i in range(self.config.num_layers[level]):
                x = self.resnet(x, f"{block}.resnets.{i}", channels, time)
                if self.config.down_block_types[level] == "CrossAttnDownBlock2D":
                    x = self.transformer(x, context, f"{block}.attentions.{i}", level)
                skips.append(x)
            if level < self.last_level:
                x = self.downsample(x, f"{block}.downsamplers.0", padding=(1, 1))
                skips.append(x)
        return x, skips

    def middle(self, x, time, context):
        channels = self.channels(x)
        x = self.resnet(x, "mid_block.resnets.0", channels, time)
        x = self.transformer(x, context, "mid_block.attentions.0", self.last_level)
        return self.resnet(x, "mid_block.resnets.1", channels, time)

    def up(self, x, skips, time, context):
        skips = list(skips)
        for index, block_type in enumerate(self.config.up_block_types):
            level = self.last_level - index
            block = f"up_blocks.{index}"
            for i in range(self.config.num_layers[level] + 1):
                x = self.concatenate(x, skips.pop())
                x = self.resnet(x, f"{block}.resnets.{i}", self.config.block_out_channels[level], time)
                if block_type == "CrossAttnUpBlock2D":
                    x = self.transformer(x, context, f"{block}.attentions.{i}", level)
            if level > 0:
                x = self.upsample(x, f"{block}.upsamplers.0")
        return x

    def transformer(self, x, context, name, level):
        """Every position of the image looks at all positions, and at the text."""
        channels = self.channels(x)
        h = self.norm(x, f"{name}.norm", self.config.transformer_norm_eps)
        if self.config.use_linear_projection:
            tokens = self.dense(self.to_tokens(h), f"{name}.proj_in", channels)
        else:
            tokens = self.to_tokens(self.conv(h, f"{name}.proj_in", channels, 1))
        for i in range(self.config.num_transformer_layers[level]):
            tokens = self.transformer_block(tokens, context, f"{name}.transformer_blocks.{i}", self.config.num_heads[level])
        if self.config.use_linear_projection:
            h = self.to_image(self.dense(tokens, f"{name}.proj_out", channels), like=x)
        else:
            h = self.conv(self.to_image(tokens, like=x), f"{name}.proj_out", channels, 1)
        return x + h

    def transformer_block(self, x, context, name, num_heads):
        h = layer_norm(x, f"{name}.norm1")
        x = x + self.attention(h, h, f"{name}.attn1", num_heads)
        h = layer_norm(x, f"{name}.norm2")
        x = x + self.attention(h, context, f"{name}.attn2", num_heads)
        h = layer_norm(x, f"{name}.norm3")
        return x + self.feed_forward(h, f"{name}.ff")

    def feed_forward(self, x, name):
        """Two layers, the first gated (GEGLU, Shazeer 2020, arXiv:2002.05202)."""
        channels = x.shape[-1]
        hidden, gate = ops.split(self.dense(x, f"{name}.net.0.proj", 8 * channels), 2, axis=-1)
        return self.dense(hidden * ops.gelu(gate, approximate=self.config.geglu_tanh), f"{name}.net.2", channels)


class TimestepWaves(layers.Layer):
    """Timesteps (B,) as sines and cosines of falling frequencies, (B, width).

    In float32 whatever the precision of the network, because half precision does not tell 999 from 1000. OpenVINO rounds between
    its kernels all the same: so the angle is folded into one turn within the kernel that reads the timestep, and what is
    rounded after that does no harm.
    """

    def __init__(self, width, flip_sin_to_cos, freq_shift, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.flip_sin_to_cos = flip_sin_to_cos
        half = width // 2
        frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - freq_shift))
        self.turns_per_step = (frequencies / (2 * math.pi)).astype(np.float32)[:, None]

    def call(self, timestep):
        turns = timestep * self.turns_per_step
        angles = 2 * math.pi * (turns - ops.floor(turns + 0.5))
        waves = [ops.sin(angles), ops.cos(angles)]
        return ops.transpose(ops.concatenate(waves[::-1] if self.flip_sin_to_cos else waves, axis=0))
