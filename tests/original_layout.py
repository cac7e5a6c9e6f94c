"""A model in diffusers' layout as one file in the original layout: the inverse of the code under test, and written apart from it.

Here blocks are walked as the original code builds them; there a file's keys are renamed by rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from triptych.models.config import UNetConfig, VAEConfig

Tensors = dict[str, np.ndarray]

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def as_original(unet: Tensors, vae: Tensors, text: Tensors, *, openclip: bool, configs: tuple[UNetConfig, VAEConfig]) -> Tensors:
    """A whole model as one file, from the tensors of its parts under diffusers' names. Keys in no order."""
    parts = (
        ("model.diffusion_model.", unet_as_original(unet, configs[0])),
        ("first_stage_model.", vae_as_original(vae, configs[1])),
        ("cond_stage_model.", openclip_as_original(text) if openclip else clip_as_original(text)),
    )
    return {prefix + key: tensor for prefix, tensors in parts for key, tensor in tensors.items()}


def unet_as_original(tensors: Tensors, config: UNetConfig) -> Tensors:
    return _taken(tensors, _unet_modules(config, tensors))


def _unet_modules(config: UNetConfig, tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Modules of the original and ours, in the order in which the original makes them."""
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield "input_blocks.0.0", "conv_in"
    number = 1
    for level, block_type in enumerate(config.down_block_types):
        for i in range(config.num_layers[level]):
            yield from _resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{i}")
            if block_type.startswith("CrossAttn"):
                yield from _transformer(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{i}", tensors)
            number += 1
        if level < len(config.down_block_types) - 1:
            yield f"input_blocks.{number}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            number += 1
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield from _transformer("middle_block.1", "mid_block.attentions.0", tensors)
    yield from _resnet("middle_block.2", "mid_block.resnets.1")
    number = 0
    for level, block_type in enumerate(config.up_block_types):
        layers = config.num_layers[::-1][level] + 1
        for i in range(layers):
            inside = 1
            yield from _resnet(f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{i}")
            if block_type.startswith("CrossAttn"):
                yield from _transformer(f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{i}", tensors)
                inside = 2
            if i == layers - 1 and level < len(config.up_block_types) - 1:
                yield f"output_blocks.{number}.{inside}.conv", f"up_blocks.{level}.upsamplers.0.conv"
            number += 1
    yield from (("out.0", "conv_norm_out"), ("out.2", "conv_out"))


def _resnet(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for their_part, our_part in RESNET.items():
        yield f"{theirs}.{their_part}", f"{ours}.{our_part}"


def _transformer(theirs: str, ours: str, tensors: Tensors) -> Iterator[tuple[str, str]]:
    """The names inside are the same in both."""
    modules = {key.rpartition(".")[0] for key in tensors if key.startswith(f"{ours}.")}
    yield from ((module.replace(ours, theirs, 1), module) for module in modules)


def vae_as_original(tensors: Tensors, config: VAEConfig) -> Tensors:
    """With 1x1 convolutions in the attention, where ours are dense layers."""
    original = _taken(tensors, _vae_modules(config))
    is_matrix = {key for key, tensor in original.items() if "attn_1" in key and tensor.ndim == 2}
    return {key: tensor[:, :, None, None] if key in is_matrix else tensor for key, tensor in original.items()}


def _vae_modules(config: VAEConfig) -> Iterator[tuple[str, str]]:
    last = len(config.block_out_channels) - 1
    resnet = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
    attention = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    places = {}
    for level in range(last + 1):
        for i in range(config.layers_per_block):
            places[f"encoder.down.{level}.block.{i}"] = f"encoder.down_blocks.{level}.resnets.{i}"
        for i in range(config.layers_per_block + 1):
            places[f"decoder.up.{level}.block.{i}"] = f"decoder.up_blocks.{last - level}.resnets.{i}"
        yield f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
        yield f"decoder.up.{level}.upsample.conv", f"decoder.up_blocks.{last - level}.upsamplers.0.conv"
    for half in ("encoder", "decoder"):
        places[f"{half}.mid.block_1"] = f"{half}.mid_block.resnets.0"
        places[f"{half}.mid.block_2"] = f"{half}.mid_block.resnets.1"
        for theirs, ours in attention.items():
            yield f"{half}.mid.attn_1.{theirs}", f"{half}.mid_block.attentions.0.{ours}"
        for theirs, ours in {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}.items():
            yield f"{half}.{theirs}", f"{half}.{ours}"
    for place, our_place in places.items():
        yield from ((f"{place}.{theirs}", f"{our_place}.{ours}") for theirs, ours in resnet.items())
    yield from (("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv"))


def clip_as_original(tensors: Tensors) -> Tensors:
    length = len(tensors["text_model.embeddings.position_embedding.weight"])
    named = {f"transformer.{key}": tensor for key, tensor in tensors.items()}
    return named | {"transformer.text_model.embeddings.position_ids": np.arange(length, dtype=np.int64)[None]}


def openclip_as_original(tensors: Tensors) -> Tensors:
    """With one more layer at the end, which nobody uses, and what compares texts with pictures."""
    width = tensors["text_model.final_layer_norm.weight"].shape[0]
    dtype = tensors["text_model.final_layer_norm.weight"].dtype
    layers = 1 + max(int(key.split(".")[3]) for key in tensors if key.startswith("text_model.encoder.layers."))
    original = {
        "model.token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "model.positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "model.ln_final.weight": tensors["text_model.final_layer_norm.weight"],
        "model.ln_final.bias": tensors["text_model.final_layer_norm.bias"],
        "model.text_projection": np.full((width, width), 7, dtype),
        "model.logit_scale": np.array(4.6, dtype),
    }
    for i in range(layers):
        ours, theirs = f"text_model.encoder.layers.{i}", f"model.transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            parts = [tensors[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            original[f"{theirs}.attn.in_proj_{kind}"] = np.concatenate(parts)
            for their_part, our_part in {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                original[f"{theirs}.{their_part}.{kind}"] = tensors[f"{ours}.{our_part}.{kind}"]
    first, unused = "model.transformer.resblocks.0.", f"model.transformer.resblocks.{layers}."
    return original | {key.replace(first, unused): 3 * tensor for key, tensor in original.items() if key.startswith(first)}


def leftovers() -> Tensors:
    """What training leaves in such files, and every program leaves aside."""
    tables = ("betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_log_variance_clipped")
    return {
        **{name: np.zeros(1000, np.float32) for name in tables},
        "model_ema.decay": np.array(0.9999, np.float32),
        "model_ema.num_updates": np.array(7, np.int32),
        "model_ema.diffusion_modelout2bias": np.zeros(4, np.float32),
        "first_stage_model.loss.logvar": np.zeros((), np.float32),
    }


def _taken(tensors: Tensors, modules: Any) -> Tensors:
    """The tensors of those modules that there are, all of them and no more."""
    pairs = [(theirs, ours) for theirs, ours in modules]
    taken: dict[str, np.ndarray] = {}
    used = set()
    for theirs, ours in pairs:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in tensors:
                taken[f"{theirs}.{kind}"] = tensors[f"{ours}.{kind}"]
                used.add(f"{ours}.{kind}")
    assert used == tensors.keys(), sorted(tensors.keys() - used)[:5]
    return taken


def contiguous(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """As safetensors wants them: it writes the memory as it lies."""
    return {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
