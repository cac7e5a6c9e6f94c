"""The layers that U-Net, VAE and text encoder are made of.

Every layer with weights is named by its module path in diffusers or transformers, such as `down_blocks.0.resnets.0.conv1`,
so that weights on disk find their layer with no table in between. Shapes: B rows, C channels, T tokens.
"""

from __future__ import annotations

import keras
from keras import layers, ops


def default_data_format() -> str:
    """Channels first where the backend computes faster so. Outside, the networks are channels last all the same."""
    return "channels_first" if keras.config.backend() == "openvino" else "channels_last"


class GroupNorm(layers.GroupNormalization):
    """Group normalization in two passes.

    Keras' own takes the variance as a difference of squares on some backends, which cancels; and OpenVINO recognises this form.
    """

    def call(self, inputs):
        shape = ops.shape(inputs)
        channels = inputs.shape[self.axis]
        x = ops.cast(inputs, "float32")  # half precision overflows in the sum of squares
        if self.axis == 1:
            x = ops.reshape(x, (shape[0], self.groups, -1))
            axes, per_channel = [2], (1, channels, 1, 1)
        else:
            x = ops.reshape(x, (shape[0], -1, self.groups, channels // self.groups))
            axes, per_channel = [1, 3], (1, 1, 1, channels)
        x = x - ops.mean(x, axis=axes, keepdims=True)
        x = x / ops.sqrt(ops.mean(ops.square(x), axis=axes, keepdims=True) + self.epsilon)
        x = ops.reshape(x, shape) * ops.reshape(self.gamma, per_channel) + ops.reshape(self.beta, per_channel)
        return ops.cast(x, self.compute_dtype)


class LayerNorm(layers.LayerNormalization):
    """Layer normalization of the last axis in the two passes of `GroupNorm`: OpenVINO does not recognise Keras' own."""

    def call(self, inputs):
        x = ops.cast(inputs, "float32")
        x = x - ops.mean(x, axis=[-1], keepdims=True)
        x = x / ops.sqrt(ops.mean(ops.square(x), axis=[-1], keepdims=True) + self.epsilon)
        return ops.cast(x * self.gamma + self.beta, self.compute_dtype)


class TokensToImage(layers.Layer):
    """(B, H*W, C) tokens back in the shape of the image that they came from."""

    def __init__(self, data_format, **kwargs):
        super().__init__(**kwargs)
        self.data_format = data_format

    def call(self, tokens, image):
        if self.data_format == "channels_first":
            tokens = ops.transpose(tokens, (0, 2, 1))
        return ops.reshape(tokens, ops.shape(image))

    def compute_output_spec(self, tokens, image):
        return keras.KerasTensor(image.shape, dtype=tokens.dtype)


class UpsamplingConv2D(layers.Conv2D):
    """A 3x3 convolution of an image made twice as large, each pixel four times, without ever making it.

    Of nine pixels that the kernel sees there, several are the same one here. So each of the four that a pixel becomes is a 2x2
    convolution of the image as it is, by sums of the kernel: the same but for rounding, at 4 multiplications instead of 9.
    Channels first, no activation. Folded into a graph, its kernels are 16/9 of what a checkpoint has.
    """

    def call(self, inputs):
        parts = [self._part(inputs, below, right) for below in (0, 1) for right in (0, 1)]
        batch, channels, height, width = ops.shape(parts[0])
        blocks = ops.reshape(ops.concatenate(parts, axis=1), (batch, 2, 2, channels, height, width))
        return ops.reshape(ops.transpose(blocks, (0, 3, 4, 1, 5, 2)), (batch, channels, 2 * height, 2 * width))

    def _part(self, inputs, below, right):
        """The upper or lower, left or right one of the four."""
        kernel = _halved(_halved(self.kernel, 0, below), 1, right)
        padded = ops.pad(inputs, ((0, 0), (0, 0), (1 - below, below), (1 - right, right)))
        part = ops.conv(padded, kernel, padding="valid", data_format="channels_first")
        return part + ops.reshape(self.bias, (1, -1, 1, 1)) if self.use_bias else part

    def compute_output_shape(self, input_shape):
        batch, _, height, width = input_shape
        return (batch, self.filters, height and 2 * height, width and 2 * width)


def _halved(kernel, axis, later):
    """Three taps on doubled pixels as two on the pixels: the earlier double sees the first alone, the later one the last."""
    first, middle, last = ops.split(kernel, 3, axis=axis)
    return ops.concatenate([first + middle, last] if later else [first, middle + last], axis=axis)


def dense(x, name, units, *, use_bias=True, kernel_initializer="glorot_uniform"):
    return layers.Dense(units, use_bias=use_bias, kernel_initializer=kernel_initializer, name=name)(x)


def layer_norm(x, name, epsilon=1e-5):
    return LayerNorm(epsilon=epsilon, name=name)(x)


def multi_head_attention(query, key, value, num_heads, *, is_causal=False):
    """(B, T, C) queries on (B, S, C) keys and values, split in heads and joined again."""
    channels = query.shape[-1]
    split = layers.Reshape((-1, num_heads, channels // num_heads))
    x = ops.dot_product_attention(split(query), split(key), split(value), is_causal=is_causal)
    return layers.Reshape((-1, channels))(x)


class ImageLayers:
    """Makes layers on images, all in one data format, with one initializer and one kind of group norm."""

    def __init__(self, *, data_format, kernel_initializer, norm_num_groups, norm_eps):
        self.data_format = data_format or default_data_format()
        self.channels_first = self.data_format == "channels_first"
        self.channel_axis = 1 if self.channels_first else -1
        self.kernel_initializer = kernel_initializer
        self.norm_num_groups = norm_num_groups
        self.norm_eps = norm_eps

    # From channels last to the format inside, and back

    def enter(self, x):
        return layers.Permute((3, 1, 2))(x) if self.channels_first else x

    def leave(self, x):
        return layers.Permute((2, 3, 1))(x) if self.channels_first else x

    def to_tokens(self, x):
        """(B, H*W, C), the positions as tokens."""
        return layers.Reshape((-1, self.channels(x)))(self.leave(x))

    def to_image(self, tokens, like):
        return TokensToImage(self.data_format)(tokens, like)

    def channels(self, x):
        return x.shape[self.channel_axis]

    # Layers

    def conv(self, x, name, channels, kernel_size=3, *, strides=1, padding="same", use_bias=True, layer=layers.Conv2D):
        return layer(
            channels,
            kernel_size,
            strides=strides,
            padding=padding,
            use_bias=use_bias,
            data_format=self.data_format,
            kernel_initializer=self.kernel_initializer,
            name=name,
        )(x)

    def upsampling_conv(self, x, name, channels, *, use_bias=True):
        """A convolution of the image at twice its size. One layer where channels are first: on OpenVINO it is faster."""
        if self.channels_first:
            return self.conv(x, name, channels, use_bias=use_bias, layer=UpsamplingConv2D)
        return self.conv(layers.UpSampling2D(2, data_format=self.data_format)(x), name, channels, use_bias=use_bias)

    def dense(self, x, name, units, *, use_bias=True):
        return dense(x, name, units, use_bias=use_bias, kernel_initializer=self.kernel_initializer)

    def norm(self, x, name, epsilon=None):
        return GroupNorm(self.norm_num_groups, axis=self.channel_axis, epsilon=epsilon or self.norm_eps, name=name)(x)

    def concatenate(self, x, y):
        return layers.Concatenate(axis=self.channel_axis)([x, y])

    def downsample(self, x, name, padding):
        """Half the size. `padding`: zeros before and after the pixels of each axis; the U-Net and the VAE differ in it."""
        padded = layers.ZeroPadding2D((padding, padding), data_format=self.data_format)(x)
        return self.conv(padded, f"{name}.conv", self.channels(x), strides=2, padding="valid")

    def upsample(self, x, name):
        return self.upsampling_conv(x, f"{name}.conv", self.channels(x))

    # Blocks

    def resnet(self, x, name, channels, time=None):
        """A residual block; `time` (B, D) shifts its channels."""
        h = ops.silu(self.norm(x, f"{name}.norm1"))
        h = self.conv(h, f"{name}.conv1", channels)
        if time is not None:
            shift = self.dense(time, f"{name}.time_emb_proj", channels)
            h = h + layers.Reshape((channels, 1, 1) if self.channels_first else (1, 1, channels))(shift)
        h = ops.silu(self.norm(h, f"{name}.norm2"))
        h = self.conv(h, f"{name}.conv2", channels)
        if self.channels(x) != channels:
            x = self.conv(x, f"{name}.conv_shortcut", channels, 1)
        return x + h

    def attention(self, x, context, name, num_heads, *, use_bias=False):
        """Tokens x (B, T, C) look at the context (B, S, D); self-attention where both are the same."""
        channels = x.shape[-1]
        query = self.dense(x, f"{name}.to_q", channels, use_bias=use_bias)
        key = self.dense(context, f"{name}.to_k", channels, use_bias=use_bias)
        value = self.dense(context, f"{name}.to_v", channels, use_bias=use_bias)
        return self.dense(multi_head_attention(query, key, value, num_heads), f"{name}.to_out.0", channels)
