"""The layout of Stable Diffusion's first publishers (CompVis, Stability AI): its names of tensors in ours, and what shapes tell.

Ours are diffusers' and transformers' names. All follows from the names and shapes that a file's header has; nothing is read here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from triptych.checkpoints.weights import first_names
from triptych.errors import CheckpointError
from triptych.models.config import CLIPTextConfig, UNetConfig, VAEConfig

Shape = tuple[int, ...]

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
"""How the keys of each part begin."""

HEADS_1 = 8
"""Attention heads of the U-Net of 1.x, at every level."""

HEAD_CHANNELS = 64
"""Channels of an attention head, in the U-Net of 2.x and in CLIP's text encoders."""

CUT_LAYERS = 23
"""Layers of OpenCLIP's ViT-H that 2.x uses, of 24. Files that were converted from diffusers' layout have no more."""

_LEFT_ASIDE = re.compile(
    r"""
      (first_stage_model\.)? (model_ema|loss) \. .*     # averaged copies of weights, and networks of the training
    | betas | logvar | lvlb_weights | global_step       # tables and counters of the training
    | (|sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_) alphas_cumprod (_prev)?
    | posterior_ (variance|log_variance_clipped|mean_coef[12])
    | cond_stage_model\. .* position_ids                # 0, 1, 2 ...
    | cond_stage_model\. (.*\.)? (logit_scale|text_projection) (\.weight)?  # by which CLIP compares texts with pictures
    """,
    re.VERBOSE,
)

_FOREIGN = (
    (r"lora_|.*[._]lora[._]", "is a LoRA, which changes a model and is none; name a file into which it is merged"),
    (r"conditioner\.embedders\.", "is of Stable Diffusion XL's kind, which is not supported: only 1.x and 2.x are"),
    (r".*\bjoint_blocks\.", "is Stable Diffusion 3, which is not supported: only 1.x and 2.x are"),
    (r".*\bdouble_blocks\.", "is Flux, which is not supported: only Stable Diffusion 1.x and 2.x are"),
    (r"control_model\.|.*\binput_hint_block\.", "is a ControlNet, which steers a model and is none"),
    (
        r".*\blabel_emb\.",
        "has a U-Net that wants more than a text, as those of Stable Diffusion XL and unCLIP do, which are not supported",
    ),
    (
        r"(conv_in|(down|up)_blocks|mid_block|text_model|(en|de)coder\.((down|up)_blocks|mid_block))\.",
        "is one network in diffusers' layout; name the folder that has model_index.json",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where a tensor of ours is in a file.

    Attributes:
        key: Of the file's tensor.
        third: Which third of its rows: query, key or value of a fused projection; None is all of it.
    """

    key: str
    third: int | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """The U-Net, the VAE or the text encoder of a file.

    Attributes:
        origin: The file, for sentences.
        pieces: Where the tensors are, by our names.
        shapes: Of the tensors, by our names.
        is_openclip: Whether it is OpenCLIP's text encoder.
    """

    origin: str
    pieces: Mapping[str, Piece]
    shapes: Mapping[str, Shape]
    is_openclip: bool = False

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise CheckpointError(f"{self.origin} is not of this architecture: it lacks {name}")
        return self.shapes[name]

    def has(self, module: str) -> bool:
        return _has(self.shapes, module)

    def count(self, module: str) -> int:
        return _count(self.shapes, module)


def parts_of(origin: str, shapes: Mapping[str, Shape]) -> dict[str, Part]:
    """What a file has, of `unet`, `vae` and `text_encoder`. A file of one part alone may have its keys without prefix.

    What has no name of ours keeps its key, so that it shows as surplus where the part is loaded.

    Args:
        origin: The file, for sentences.
        shapes: Of its tensors, by its own keys.

    Raises:
        CheckpointError: The keys are not of this layout, or a tensor is there twice.
    """
    wanted = [key for key in shapes if not _LEFT_ASIDE.fullmatch(key)]
    for pattern, sentence in _FOREIGN:
        if any(re.match(pattern, key) for key in wanted):
            raise CheckpointError(f"{origin} {sentence}")
    prefixes = PREFIXES
    if not any(key.startswith(tuple(PREFIXES.values())) for key in wanted):
        prefixes = {_part_without_prefix(origin, wanted): ""}
    if surplus := [key for key in wanted if not key.startswith(tuple(prefixes.values()))]:
        raise CheckpointError(f"{origin} is not Stable Diffusion in its original layout: it has surplus {first_names(surplus)}")
    parts = {}
    for part, prefix in prefixes.items():
        keys = [key.removeprefix(prefix) for key in wanted if key.startswith(prefix)]
        if keys:
            parts[part] = _part(origin, part, prefix, keys, shapes)
    return parts


def _part_without_prefix(origin: str, keys: Collection[str]) -> str:
    for part, sign in (("vae", r"(encoder|decoder)\.conv_in\."), ("unet", r"input_blocks\.0\.0\.")):
        if any(re.match(sign, key) for key in keys):
            return part
    held = first_names(keys) or "nothing"
    raise CheckpointError(f"{origin} holds no part of Stable Diffusion in its original layout, but {held}")


def _part(origin: str, part: str, prefix: str, keys: Collection[str], shapes: Mapping[str, Shape]) -> Part:
    rename = {"unet": _unet_names, "vae": _vae_names, "text_encoder": _text_names}[part]
    pieces: dict[str, Piece] = {}
    for key, name in rename(keys):
        for whole, piece in _split(name or prefix + key, prefix + key):
            if whole in pieces:
                raise CheckpointError(f"{origin} has {whole} twice, as {pieces[whole].key} and as {piece.key}")
            pieces[whole] = piece
    return Part(
        origin=origin,
        pieces=pieces,
        shapes={name: _shape(piece, shapes[piece.key]) for name, piece in pieces.items()},
        is_openclip=part == "text_encoder" and _is_openclip(keys),
    )


def _split(name: str, key: str) -> Iterator[tuple[str, Piece]]:
    """A fused projection in three, anything else as it is."""
    fused = re.fullmatch(r"(.*\.self_attn)\.in_proj_(weight|bias)", name)
    if fused is None:
        yield name, Piece(key=key)
        return
    for third, projection in enumerate(("q_proj", "k_proj", "v_proj")):
        yield f"{fused[1]}.{projection}.{fused[2]}", Piece(key=key, third=third)


def _shape(piece: Piece, whole: Shape) -> Shape:
    return whole if piece.third is None else (whole[0] // 3, *whole[1:])


# The U-Net. Its blocks are numbered through, ours by level: a level ends where the size of the image changes.

_UNET_MODULES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_RULES = (
    (r"(\.resnets\.\d+)\.in_layers\.0\.", r"\1.norm1."),
    (r"(\.resnets\.\d+)\.in_layers\.2\.", r"\1.conv1."),
    (r"(\.resnets\.\d+)\.emb_layers\.1\.", r"\1.time_emb_proj."),
    (r"(\.resnets\.\d+)\.out_layers\.0\.", r"\1.norm2."),
    (r"(\.resnets\.\d+)\.out_layers\.3\.", r"\1.conv2."),
    (r"(\.resnets\.\d+)\.skip_connection\.", r"\1.conv_shortcut."),
)


def _unet_names(keys: Collection[str]) -> Iterator[tuple[str, str | None]]:
    modules = _UNET_MODULES | dict(_down_modules(keys)) | dict(_up_modules(keys))
    for key in keys:
        # The longest: output_blocks.2.1.conv lies in output_blocks.2.1
        module = max((module for module in modules if key.startswith(f"{module}.")), key=len, default=None)
        yield key, module and _renamed(modules[module] + key.removeprefix(module), _UNET_RULES)


def _down_modules(keys: Collection[str]) -> Iterator[tuple[str, str]]:
    level, i = 0, 0
    for number in range(1, _count(keys, "input_blocks")):
        block = f"input_blocks.{number}"
        if _has(keys, f"{block}.0.op"):
            yield f"{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            level, i = level + 1, 0
        else:
            yield f"{block}.0", f"down_blocks.{level}.resnets.{i}"
            yield f"{block}.1", f"down_blocks.{level}.attentions.{i}"
            i += 1


def _up_modules(keys: Collection[str]) -> Iterator[tuple[str, str]]:
    level, i = 0, 0
    for number in range(_count(keys, "output_blocks")):
        block = f"output_blocks.{number}"
        yield f"{block}.0", f"up_blocks.{level}.resnets.{i}"
        yield f"{block}.1", f"up_blocks.{level}.attentions.{i}"
        i += 1
        for last in (f"{block}.1.conv", f"{block}.2.conv"):  # the second where there is a transformer
            if _has(keys, last):
                yield last, f"up_blocks.{level}.upsamplers.0.conv"
                level, i = level + 1, 0


def unet_config(part: Part) -> UNetConfig:
    """What a U-Net's tensors tell of it, and the family's rule for what they do not: its heads.

    Raises:
        CheckpointError: A tensor that tells something is missing.
    """
    levels = range(part.count("down_blocks"))
    widths = tuple(part.shape(f"down_blocks.{level}.resnets.0.conv1.weight")[0] for level in levels)
    is_linear = len(part.shape("mid_block.attentions.0.proj_in.weight")) == 2

    def types(side: str) -> tuple[str, ...]:
        crosses = (part.has(f"{side}_blocks.{level}.attentions") for level in levels)
        return tuple(f"{'CrossAttn' if cross else ''}{side.capitalize()}Block2D" for cross in crosses)

    def transformer_layers(level: int) -> int:
        places = ["mid_block"] if level == levels[-1] else [f"down_blocks.{level}", f"up_blocks.{levels[-1] - level}"]
        return max([1, *(part.count(f"{place}.attentions.0.transformer_blocks") for place in places)])

    return UNetConfig(
        in_channels=part.shape("conv_in.weight")[1],
        out_channels=part.shape("conv_out.weight")[0],
        block_out_channels=widths,
        down_block_types=types("down"),
        up_block_types=types("up"),
        layers_per_block=_one_or_each(part.count(f"down_blocks.{level}.resnets") for level in levels),
        transformer_layers_per_block=_one_or_each(map(transformer_layers, levels)),
        attention_head_dim=tuple(width // HEAD_CHANNELS for width in widths) if is_linear else HEADS_1,
        cross_attention_dim=part.shape("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")[1],
        use_linear_projection=is_linear,
    )


# The VAE. On the way up its levels are numbered from the largest image, ours from the smallest.

_VAE_RULES = (
    (r"^encoder\.down\.", "encoder.down_blocks."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def _vae_names(keys: Collection[str]) -> Iterator[tuple[str, str | None]]:
    last = _count(keys, "decoder.up") - 1
    for key in keys:
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda level: f"decoder.up_blocks.{last - int(level[1])}.", key)
        is_ours = re.match(r"(encoder|decoder|quant_conv|post_quant_conv)\.", key)
        yield key, _renamed(name, _VAE_RULES) if is_ours else None


def vae_config(part: Part) -> VAEConfig:
    """What a VAE's tensors tell of it, one of its halves being enough. See `unet_config`."""
    if part.has("encoder"):
        levels = part.count("encoder.down_blocks")
        blocks = [f"encoder.down_blocks.{level}.resnets" for level in range(levels)]
        layers = part.count("encoder.down_blocks.0.resnets")
        latent_channels = part.shape("encoder.conv_out.weight")[0] // 2
    else:
        levels = part.count("decoder.up_blocks")
        blocks = [f"decoder.up_blocks.{levels - 1 - level}.resnets" for level in range(levels)]
        layers = part.count("decoder.up_blocks.0.resnets") - 1
        latent_channels = part.shape("decoder.conv_in.weight")[1]
    return VAEConfig(
        latent_channels=latent_channels,
        block_out_channels=tuple(part.shape(f"{resnets}.0.conv1.weight")[0] for resnets in blocks),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=layers,
    )


# The text encoder: transformers' own names behind a prefix that varies, or OpenCLIP's.

_CLIP_RULES = ((r"^(transformer\.)?(text_model\.)?(?=(embeddings|encoder|final_layer_norm)\.)", "text_model."),)
_OPENCLIP_RULES = (
    (r"^model\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^model\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^model\.transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^model\.ln_final\.", "text_model.final_layer_norm."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def _is_openclip(keys: Collection[str]) -> bool:
    return _has(keys, "model")


def _text_names(keys: Collection[str]) -> Iterator[tuple[str, str | None]]:
    rules = _OPENCLIP_RULES if _is_openclip(keys) else _CLIP_RULES
    for key in keys:
        name = _renamed(key, rules)
        yield key, name if name.startswith("text_model.") else None


def text_config(part: Part) -> CLIPTextConfig:
    """What a text encoder's tensors tell of it. Of OpenCLIP's layers the last is not used: 2.x was trained without it.

    See `unet_config`.
    """
    layers = part.count("text_model.encoder.layers")
    vocab_size, hidden_size = part.shape("text_model.embeddings.token_embedding.weight")
    return CLIPTextConfig(
        vocab_size=vocab_size,
        max_position_embeddings=part.shape("text_model.embeddings.position_embedding.weight")[0],
        hidden_size=hidden_size,
        intermediate_size=part.shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=layers - 1 if part.is_openclip and layers != CUT_LAYERS else layers,
        num_attention_heads=hidden_size // HEAD_CHANNELS,
        hidden_act="gelu" if part.is_openclip else "quick_gelu",
    )


def is_unused_layer(name: str, config: CLIPTextConfig) -> bool:
    """Whether a tensor of ours belongs to a layer that the text encoder does not run."""
    layer = re.match(r"text_model\.encoder\.layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= config.num_hidden_layers


# Names


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _has(names: Collection[str], module: str) -> bool:
    return any(name.startswith(f"{module}.") for name in names)


def _count(names: Collection[str], module: str) -> int:
    """How many numbered modules there are in a module, if none is missing."""
    numbers = (re.match(rf"{re.escape(module)}\.(\d+)\.", name) for name in names)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def _one_or_each(counts: Iterable[int]) -> int | tuple[int, ...]:
    """One number for all levels, or one each."""
    each = tuple(counts)
    return each[0] if len(set(each)) == 1 else each
