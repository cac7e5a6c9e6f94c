"""The U-Net of latent diffusion, which predicts the noise in latents for a text (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

import math
from itertools import islice

import keras
import numpy as np
from keras import layers, ops

from triptych.models.config import SHALLOW_LAYERS, UNetConfig
from triptych.models.layers import ImageLayers, layer_norm


def build_unet(config: UNetConfig, *, keep_features=False, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """The U-Net.

    Inputs: `latents` (B, H/8, W/8, C), `timestep` (B,) in 0..999 and not necessarily whole, `context` (B, T, D).
    Outputs: `prediction` (B, H/8, W/8, 4); with `keep_features` also `features` (B, H/8, W/8, F), for the shallow U-Net;
        F is the configuration's `num_features`.
    """
    net = UNetLayers(config, data_format, kernel_initializer)
    inputs = _inputs(config)
    time, context = net.time_embedding(inputs["timestep"]), inputs["context"]
    skips = list(net.down(net.conv_in(inputs["latents"]), time, context))
    x = net.middle(skips[-1], time, context)
    features = net.up(x, skips, time, context, net.up_layers[:-SHALLOW_LAYERS])
    x = net.up(features, skips, time, context, net.up_layers[-SHALLOW_LAYERS:])
    outputs = {"prediction": net.conv_out(x)}
    if keep_features:
        outputs["features"] = net.leave(features)
    return keras.Model(inputs, outputs, name="unet")


def build_shallow_unet(config: UNetConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """The parts of the U-Net that are nearest to the latents, on what all of it found out (Ma et al. 2023, arXiv:2312.00858).

    Its layers are some of the U-Net's, under their names.

    Inputs: As of `build_unet`, and the `features` (B, H/8, W/8, F) that the U-Net had for these latents, or a few steps before.
    Outputs: `prediction` (B, H/8, W/8, 4).
    """
    net = UNetLayers(config, data_format, kernel_initializer)
    inputs = {**_inputs(config), "features": keras.Input((None, None, config.num_features), name="features")}
    time, context = net.time_embedding(inputs["timestep"]), inputs["context"]
    skips = list(islice(net.down(net.conv_in(inputs["latents"]), time, context), SHALLOW_LAYERS))
    x = net.up(net.enter(inputs["features"]), skips, time, context, net.up_layers[-SHALLOW_LAYERS:])
    return keras.Model(inputs, {"prediction": net.conv_out(x)}, name="shallow_unet")


def _inputs(config: UNetConfig):
    return {
        "latents": keras.Input((None, None, config.in_channels), name="latents"),
        "timestep": keras.Input((), name="timestep"),
        "context": keras.Input((None, config.cross_attention_dim), name="context"),
    }


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
        self.up_layers = [
            (index, i) for index, num_layers in enumerate(reversed(config.num_layers)) for i in range(num_layers + 1)
        ]

    def time_embedding(self, timestep):
        """What every residual block hears of the timestep, (B, D)."""
        width = self.config.block_out_channels[0]
        x = TimestepWaves(width, self.config.flip_sin_to_cos, self.config.freq_shift, name="time_proj")(timestep)
        x = self.dense(x, "time_embedding.linear_1", 4 * width)
        x = self.dense(ops.silu(x), "time_embedding.linear_2", 4 * width)
        return ops.silu(x)  # the blocks of diffusers do this each for itself

    def conv_in(self, latents):
        return self.conv(self.enter(latents), "conv_in", self.config.block_out_channels[0])

    def conv_out(self, x):
        x = ops.silu(self.norm(x, "conv_norm_out"))
        return self.leave(self.conv(x, "conv_out", self.config.out_channels))

    def down(self, x, time, context):
        """The way down: what the way up will want of it, as it is made; the last is where it ends."""
        yield x
        for level, channels in enumerate(self.config.block_out_channels):
            block = f"down_blocks.{level}"
            for i in range(self.config.num_layers[level]):
                x = self.resnet(x, f"{block}.resnets.{i}", channels, time)
                if self.config.down_block_types[level] == "CrossAttnDownBlock2D":
                    x = self.transformer(x, context, f"{block}.attentions.{i}", level)
                yield x
            if level < self.last_level:
                x = self.downsample(x, f"{block}.downsamplers.0", padding=(1, 1))
                yield x

    def middle(self, x, time, context):
        channels = self.channels(x)
        x = self.resnet(x, "mid_block.resnets.0", channels, time)
        x = self.transformer(x, context, "mid_block.attentions.0", self.last_level)
        return self.resnet(x, "mid_block.resnets.1", channels, time)

    def up(self, x, skips, time, context, layers):
        """Some layers of the way up, each by its block and its place therein; takes what they want off the end of `skips`."""
        for index, i in layers:
            level = self.last_level - index
            block = f"up_blocks.{index}"
            x = self.concatenate(x, skips.pop())
            x = self.resnet(x, f"{block}.resnets.{i}", self.config.block_out_channels[level], time)
            if self.config.up_block_types[index] == "CrossAttnUpBlock2D":
                x = self.transformer(x, context, f"{block}.attentions.{i}", level)
            if level > 0 and i == self.config.num_layers[level]:
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
