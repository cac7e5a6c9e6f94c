"""The VAE in parts, for pictures so large that the levels nearest to them would take too much memory at once.

Those upper levels are run in tiles; the rest, with the attention that looks at all of a picture, is the *trunk* and runs whole.
A tile that overlaps its neighbours by all that its convolutions see would be what it is in the whole, were it not for the group
norms, which look at all of a picture too. So a tile is told mean and scale (one over the standard deviation) of the whole, and
tells what it finds itself. That comes first among what a tile returns: an engine that computes outputs in order would else keep
for the end all that its norms were found on. To begin with they come from a *thumbnail*: the upper levels on every second
position or fewer, normalized by itself, but for a correction. What brings all this together is `stages/tiles.py`.

What is told of norms is (B, N, 2, G): of N norms in the order in which they run, with G groups each.
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import layers, ops

from triptych.models.config import VAEConfig
from triptych.models.tiling import num_upper_levels, tiling_of_decoder, tiling_of_encoder
from triptych.models.vae import VAELayers


def build_decoder_trunk(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """Inputs: `latents` (B, H/8, W/8, 4), as of `build_vae_decoder`. Outputs: `features` (B, H/4, W/4, C)."""
    net = VAELayers(config, data_format, kernel_initializer)
    latents = keras.Input((None, None, config.latent_channels), name="latents")
    features = net.up(net.middle_of_latents(latents), range(net.num_levels - num_upper_levels(config)))
    return keras.Model({"latents": latents}, {"features": net.leave(features)}, name="vae_decoder_trunk")


def build_decoder_tile(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """A tile of the decoder's upper levels.

    Inputs: `features` (B, h, w, C); `share` (B, h, w, 1), 1 where the tile counts; `told`, mean and scale of the whole.
    Outputs: `found`, the means over the tile of `share` times the normalized values, and their squares; `images` (B, 4h, 4w, 3).
    """
    tiling = tiling_of_decoder(config)
    net = TileLayers(config, data_format, kernel_initializer)
    inputs = net.inputs("features", tiling.channels, tiling.num_norms)
    images = _up(net, inputs["features"])
    return keras.Model(inputs, {"found": net.found, "images": images}, name="vae_decoder_tile")


def build_decoder_thumbnail(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """A thumbnail for the decoder's tiles.

    Inputs: `features` (B, h, w, C); `told`, what is added to its means, and what its scales are multiplied by.
    Outputs: `found`, its means and scales before that.
    """
    tiling = tiling_of_decoder(config)
    net = ThumbnailLayers(config, data_format, kernel_initializer)
    inputs = net.inputs("features", tiling.channels, tiling.num_norms)
    _up(net, inputs["features"])
    return keras.Model(inputs, {"found": net.found}, name="vae_decoder_thumbnail")


def build_encoder_tile(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """A tile of the encoder's upper levels. As the decoder's, from `images` (B, 4h, 4w, 3) to `features` (B, h, w, C)."""
    net = TileLayers(config, data_format, kernel_initializer)
    inputs = net.inputs("images", config.in_channels, tiling_of_encoder(config).num_norms)
    net.enlarge_share(2 ** num_upper_levels(config))
    features = _down(net, inputs["images"])
    return keras.Model(inputs, {"found": net.found, "features": features}, name="vae_encoder_tile")


def build_encoder_thumbnail(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """A thumbnail for the encoder's tiles. As the decoder's, on `images`."""
    net = ThumbnailLayers(config, data_format, kernel_initializer)
    inputs = net.inputs("images", config.in_channels, tiling_of_encoder(config).num_norms)
    _down(net, inputs["images"])
    return keras.Model(inputs, {"found": net.found}, name="vae_encoder_thumbnail")


def build_encoder_trunk(config: VAEConfig, *, data_format=None, kernel_initializer="glorot_uniform") -> keras.Model:
    """Inputs: `features` (B, H/4, W/4, C). Outputs: As of `build_vae_encoder`."""
    net = VAELayers(config, data_format, kernel_initializer)
    features = keras.Input((None, None, tiling_of_encoder(config).channels), name="features")
    x = net.down(net.enter(features), range(num_upper_levels(config), net.num_levels))
    return keras.Model({"features": features}, net.distribution(x), name="vae_encoder_trunk")


def _up(net, features):
    levels = range(net.num_levels - num_upper_levels(net.config), net.num_levels)
    return net.images(net.last_norm(net.up(net.enter(features), levels)))


def _down(net, images):
    return net.leave(net.down(net.conv_of_images(images), range(num_upper_levels(net.config))))


class ThumbnailLayers(VAELayers):
    """Layers whose group norms are told something, and tell what they find."""

    def inputs(self, name, channels, num_norms):
        """`told`, and under its name what the levels are run on."""
        self._found = []
        self._told = keras.Input((num_norms, 2, self.norm_num_groups), name="told")
        return {name: keras.Input((None, None, channels), name=name), "told": self._told}

    @property
    def found(self):
        return ops.stack(self._found, axis=1)

    def norm(self, x, name, epsilon=None):
        mean, scale = (self._told[:, len(self._found), place] for place in range(2))
        x, found = self.told_norm(x, mean, scale, axis=self.channel_axis, epsilon=self.norm_eps, name=name)
        self._found.append(found)
        return x

    def told_norm(self, x, mean, scale, **options):
        return CorrectedGroupNorm(self.norm_num_groups, **options)(x, mean, scale)


class TileLayers(ThumbnailLayers):
    """Layers that run on a part of an image, of which another part counts."""

    def inputs(self, name, channels, num_norms):
        share = keras.Input((None, None, 1), name="share")
        self.share = self.enter(share)
        return {**super().inputs(name, channels, num_norms), "share": share}

    def enlarge_share(self, factor):
        self.share = layers.UpSampling2D(factor, data_format=self.data_format)(self.share)

    def upsample(self, x, name):
        self.enlarge_share(2)
        return super().upsample(x, name)

    def downsample(self, x, name, padding):
        self.share = layers.AveragePooling2D(2, data_format=self.data_format)(self.share)
        return super().downsample(x, name, padding)

    def told_norm(self, x, mean, scale, **options):
        return GivenGroupNorm(self.norm_num_groups, **options)(x, mean, scale, self.share)


class GroupNormOfWhole(layers.GroupNormalization):
    """What the group norms of tiles and thumbnails share. What they are told stays in float32."""

    def __init__(self, groups, **options):
        super().__init__(groups, autocast=False, **options)

    def specs(self, inputs):
        found = keras.KerasTensor((inputs.shape[0], 2, self.groups), dtype="float32")
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype), found

    def normalized(self, x, mean, scale):
        return (x - self._by_channel(mean)) * self._by_channel(scale)

    def affine(self, normalized):
        channels = self.gamma.shape[0]
        shape = (1, channels, 1, 1) if self.axis == 1 else (1, 1, 1, channels)
        return ops.cast(normalized * ops.reshape(self.gamma, shape) + ops.reshape(self.beta, shape), self.compute_dtype)

    def group_means(self, x):
        """(B, G) of an image.

        Where channels are first they become groups by a convolution. A sum would do, but for OpenVINO, which computes in float32
        all that lies between the last convolution and what a network returns: here it would be whole images.
        """
        channels_of_a_group = self.gamma.shape[0] // self.groups
        if self.axis != 1:
            return ops.mean(ops.reshape(ops.mean(x, axis=(1, 2)), (-1, self.groups, channels_of_a_group)), axis=2)
        power = 2 ** math.ceil(math.log2(channels_of_a_group))  # a fraction that half precision has
        kernel = np.repeat(np.eye(self.groups, dtype="float32"), channels_of_a_group, axis=0)[None, None] / power
        sums = ops.conv(x, ops.convert_to_tensor(kernel), data_format="channels_first")
        return ops.mean(sums, axis=(2, 3)) * (power / channels_of_a_group)

    def _by_channel(self, x):
        """(B, G) as it goes with an image."""
        channels = self.gamma.shape[0]
        x = ops.repeat(x, channels // self.groups, axis=1)
        return ops.reshape(x, (-1, channels, 1, 1) if self.axis == 1 else (-1, 1, 1, channels))


class GivenGroupNorm(GroupNormOfWhole):
    """Group normalization by a mean and a scale that are given, each (B, G).

    Also returns, (B, 2, G), the means over the image of `share` times the normalized values, and times their squares.
    """

    def compute_output_spec(self, inputs, mean, scale, share):
        return self.specs(inputs)

    def call(self, inputs, mean, scale, share):
        x = self.normalized(ops.cast(inputs, "float32"), mean, scale)
        counted = x * share
        return self.affine(x), ops.stack([self.group_means(counted), self.group_means(counted * x)], axis=1)


class CorrectedGroupNorm(GroupNormOfWhole):
    """Group normalization by its own mean plus one that is given, and its own scale times one that is given, each (B, G).

    Also returns, (B, 2, G), its own mean and scale.
    """

    def compute_output_spec(self, inputs, mean, scale):
        return self.specs(inputs)

    def call(self, inputs, mean, scale):
        x = ops.cast(inputs, "float32")
        own_mean = self.group_means(x)
        variance = 256 * self.group_means(ops.square((x - self._by_channel(own_mean)) / 16))  # float16 ends at 65504
        own_scale = 1 / ops.sqrt(variance + self.epsilon)
        return self.affine(self.normalized(x, own_mean + mean, own_scale * scale)), ops.stack([own_mean, own_scale], axis=1)
