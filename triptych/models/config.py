"""Configurations of the networks, with the field names of diffusers' and transformers' config.json. No keras here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from triptych.errors import CheckpointError

# Fields that change the network in ways that ours does not know, with the values that leave it as ours is. A key that is
# neither here nor a field of the dataclass has no say in what the network computes.
_UNET_ONLY = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "center_input_sample": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
}
_VAE_ONLY = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu",),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
_TINY_VAE_ONLY = {
    "_class_name": ("AutoencoderTiny",),
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
    "shift_factor": (None, 0, 0.0),
}
_TEXT_ONLY = {"model_type": ("clip_text_model", "clip")}

_UNET_BLOCK_TYPES = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_VAE_BLOCK_TYPES = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}

Depths = tuple[int, ...]  # layers or blocks of each level; a level may have none

_OURS = {"ours": True}  # marks a field that diffusers does not have

SHALLOW_LAYERS = 2
"""Of the way up, in the shallow U-Net: the last two, and of the way down what they want of it."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What the three configurations share."""

    network: ClassVar[str]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a config.json describes.

        Raises:
            CheckpointError: A field has a value that our network does not have, or that no network can have.
        """
        known = {field.name: _frozen(values[field.name]) for field in fields(cls) if field.name in values}
        for each in fields(cls):
            if each.name in known:
                _refuse_other_kind(cls.network, each.name, known[each.name], str(each.type))
        config = cls(**known)
        config._refuse_unsupported(values)
        config._refuse_impossible()
        return config

    def to_dict(self) -> dict[str, Any]:
        """As in a config.json. Fields that diffusers does not know are left out where they say what diffusers does anyway."""
        ours = {field.name for field in fields(self) if "ours" in field.metadata and getattr(self, field.name) == field.default}
        return {name: value for name, value in asdict(self).items() if name not in ours}

    @property
    def width(self) -> int:
        """Channels of the widest layer, leaving what is inside a block aside."""
        raise NotImplementedError

    def _refuse_unsupported(self, values: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _refuse_impossible(self) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """The U-Net, as diffusers' UNet2DConditionModel and with its defaults.

    Attributes:
        attention_head_dim: In spite of its name the number of attention heads, one for all levels or one each. diffusers
            kept the name for the sake of the checkpoints that have it.
        transformer_norm_eps: Of the group norm before each transformer; a constant in diffusers.
        geglu_tanh: Whether the gates of the feed-forward layers are the tanh approximation of GELU, as in keras-cv.
    """

    network: ClassVar[str] = "U-Net"

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    transformer_norm_eps: float = field(default=1e-6, metadata=_OURS)
    geglu_tanh: bool = field(default=False, metadata=_OURS)
    flip_sin_to_cos: bool = True
    freq_shift: float = 0

    @property
    def width(self) -> int:
        return max(self.block_out_channels)

    @property
    def num_layers(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down; on the way up there is one more."""
        return self._by_level(self.layers_per_block)

    @property
    def num_transformer_layers(self) -> tuple[int, ...]:
        """Transformer blocks after each residual block, by level."""
        return self._by_level(self.transformer_layers_per_block)

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads, by level."""
        return self._by_level(self.attention_head_dim)

    @property
    def num_features(self) -> int:
        """Channels of what enters the shallow part of the way up."""
        begins_the_block = self.num_layers[0] + 1 == SHALLOW_LAYERS and len(self.block_out_channels) > 1
        return self.block_out_channels[1 if begins_the_block else 0]

    def _by_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    def _refuse_unsupported(self, values: Mapping[str, Any]) -> None:
        _refuse_other_values("U-Net", values, _UNET_ONLY)
        _refuse_other_blocks("U-Net", self, _UNET_BLOCK_TYPES)
        for name in ("layers_per_block", "transformer_layers_per_block", "attention_head_dim"):
            _refuse_other_length("U-Net", name, self._by_level(getattr(self, name)), len(self.block_out_channels))

    def _refuse_impossible(self) -> None:
        last_level = len(self.block_out_channels) - 1
        blocks = zip(self.down_block_types, reversed(self.up_block_types), strict=True)
        for level, (width, heads, types) in enumerate(zip(self.block_out_channels, self.num_heads, blocks, strict=True)):
            _refuse_indivisible(self.network, "channels", width, "norm_num_groups", self.norm_num_groups)
            if level == last_level or any(block.startswith("CrossAttn") for block in types):
                _refuse_indivisible(self.network, "channels", width, "attention_head_dim", heads)
        first = self.block_out_channels[0]
        if first % 2 or self.freq_shift >= first // 2:
            raise CheckpointError(
                f"the configuration of the U-Net has {first} first channels and freq_shift={self.freq_shift}; "
                "the channels must be even, and their half above freq_shift"
            )


@dataclass(frozen=True, kw_only=True)
class VAEConfig(NetworkConfig):
    """The variational autoencoder, as diffusers' AutoencoderKL and with its defaults.

    Attributes:
        norm_eps: Of all group norms; a constant in diffusers.
    """

    network: ClassVar[str] = "VAE"

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    norm_eps: float = field(default=1e-6, metadata=_OURS)
    scaling_factor: float = 0.18215

    @property
    def width(self) -> int:
        return max(self.block_out_channels)

    @property
    def downsampling(self) -> int:
        """Pixels of an edge that become one latent."""
        return 2 ** (len(self.block_out_channels) - 1)

    def _refuse_unsupported(self, values: Mapping[str, Any]) -> None:
        _refuse_other_values("VAE", values, _VAE_ONLY)
        _refuse_other_blocks("VAE", self, _VAE_BLOCK_TYPES)

    def _refuse_impossible(self) -> None:
        for width in self.block_out_channels:
            _refuse_indivisible(self.network, "channels", width, "norm_num_groups", self.norm_num_groups)


@dataclass(frozen=True, kw_only=True)
class TinyVAEConfig(NetworkConfig):
    """The decoder of a tiny autoencoder, as diffusers' AutoencoderTiny and with its defaults. The encoder is not ours.

    Attributes:
        decoder_block_out_channels: As many as `num_decoder_blocks`, and all alike: no network of this kind can have others.
    """

    network: ClassVar[str] = "tiny VAE"

    out_channels: int = 3
    latent_channels: int = 4
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_decoder_blocks: Depths = (3, 3, 3, 1)
    scaling_factor: float = 1.0

    @property
    def width(self) -> int:
        return self.decoder_block_out_channels[0]

    @property
    def downsampling(self) -> int:
        """Pixels of an edge that become one latent."""
        return int(2 ** (len(self.num_decoder_blocks) - 1))

    @property
    def num_decoder_layers(self) -> int:
        """As torch counts them: activations and enlargements too."""
        return 2 + sum(self.num_decoder_blocks) + 2 * len(self.num_decoder_blocks) - 1

    def _refuse_unsupported(self, values: Mapping[str, Any]) -> None:
        _refuse_other_values(self.network, values, _TINY_VAE_ONLY)

    def _refuse_impossible(self) -> None:
        widths, blocks = self.decoder_block_out_channels, self.num_decoder_blocks
        if len(widths) != len(blocks) or len(set(widths)) > 1:
            raise CheckpointError(
                f"the configuration of the {self.network} has decoder_block_out_channels={widths}; they must all be alike, "
                f"and as many as num_decoder_blocks={blocks}"
            )


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(NetworkConfig):
    """The text encoder, as transformers' CLIPTextModel and with its defaults.

    Attributes:
        max_position_embeddings: Tokens of a context.
    """

    network: ClassVar[str] = "text encoder"

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        return self.hidden_size

    def _refuse_unsupported(self, values: Mapping[str, Any]) -> None:
        _refuse_other_values("text encoder", values, _TEXT_ONLY)
        _refuse_other_values(
            "text encoder", {"hidden_act": self.hidden_act}, {"hidden_act": ("quick_gelu", "gelu", "gelu_pytorch_tanh")}
        )

    def _refuse_impossible(self) -> None:
        _refuse_indivisible(self.network, "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)


STABLE_DIFFUSION_1_5_UNET = UNetConfig(cross_attention_dim=768)
STABLE_DIFFUSION_1_5_VAE = VAEConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
STABLE_DIFFUSION_1_5_TEXT_ENCODER = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _are(value: Any, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(is_one, value))


# By a field's annotation: what it may be in words, and whether a value is
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number above 0", _is_count),
    "float": ("a number above 0", _is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("a string", lambda value: isinstance(value, str)),
    "tuple[int, ...]": ("a list of whole numbers above 0", lambda value: _are(value, _is_count)),
    "Depths": ("a list of whole numbers, none below 0", lambda value: _are(value, lambda item: item == 0 or _is_count(item))),
    "tuple[str, ...]": ("a list of strings", lambda value: _are(value, lambda item: isinstance(item, str))),
    "int | tuple[int, ...]": (
        "a whole number above 0, or a list of such",
        lambda value: _is_count(value) or _are(value, _is_count),
    ),
}


def _refuse_other_kind(network: str, name: str, value: Any, annotation: str) -> None:
    words, is_one = _KINDS[annotation]
    if name == "freq_shift" and value == 0:
        return
    if not is_one(value):
        raise CheckpointError(f"the configuration of the {network} has {name}={str(value)[:64]}; it must be {words}")


def _refuse_indivisible(network: str, what: str, value: int, name: str, parts: int) -> None:
    if value % parts:
        raise CheckpointError(f"the configuration of the {network} has {value} {what}, which {name} {parts} does not divide")


def _refuse_other_values(network: str, values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            wanted = " or ".join(repr(choice) for choice in choices)
            raise CheckpointError(f"our {network} wants {name} to be {wanted}, the configuration has {values[name]!r}")


def _refuse_other_blocks(network: str, config: UNetConfig | VAEConfig, allowed: Mapping[str, tuple[str, ...]]) -> None:
    for name, choices in allowed.items():
        blocks = getattr(config, name)
        _refuse_other_length(network, name, blocks, len(config.block_out_channels))
        for block in blocks:
            _refuse_other_values(network, {name: block}, {name: choices})


def _refuse_other_length(network: str, name: str, values: tuple[Any, ...], levels: int) -> None:
    if len(values) != levels:
        raise CheckpointError(
            f"the configuration of the {network} has {levels} block_out_channels but {len(values)} {name}; they must be as many"
        )
